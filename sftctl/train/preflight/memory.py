"""How much memory a run takes at its largest micro-batch: an estimate, made before it starts."""

from dataclasses import dataclass

import torch

from sftctl.config.schema import RunConfig
from sftctl.data.loader import StepShape, longest_micro_batch
from sftctl.data.microbatch import Examples
from sftctl.machine import free_memory, resident_bytes
from sftctl.model.fake import FakeModel
from sftctl.train.engine.state import AUTOCAST_DTYPES
from sftctl.train.preflight.rehearsal import ModelShape

ESTIMATE_ERROR_RATIO = 0.25
"""The margin that a finding names; docs/preflight.md says what was measured."""

_WORD = 4  # bytes of a float32: weights, gradients and both moments are stored as these


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes on one rank at the peak, by purpose."""

    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int | None  # kept between forward and backward; None: unknown
    save_copy_bytes: int  # of the state, while it is written; in the CPU's memory
    process_bytes: int  # Python, torch and everything loaded already; in the CPU's memory
    rows: int  # of the largest micro-batch
    row_tokens: int
    available_bytes: int | None  # for this rank, now; None: unknown

    @property
    def certain_bytes(self) -> int:
        """What is needed however small the micro-batches are."""
        return self.weights_bytes + self.gradients_bytes + self.optimizer_bytes

    @property
    def total_bytes(self) -> int:
        """The peak, on the device that computes."""
        return (
            self.certain_bytes
            + (self.activations_bytes or 0)
            + self.save_copy_bytes
            + self.process_bytes
        )


def estimate_memory(
    config: RunConfig,
    store: Examples,
    fake: FakeModel,
    shape: StepShape,
    available_bytes: int | None,
) -> MemoryEstimate:
    """What a rank with steps of this shape takes; `available_bytes` is only handed on."""
    on_cpu = fake.device.type == "cpu"
    num_shards = shape.world_size if config.train.strategy == "fsdp" else 1
    state = fake.num_parameters * _WORD // num_shards
    batch = longest_micro_batch(store, shape)
    (rows, row_tokens), num_targets = batch.input_ids.shape, len(batch.target_ids)
    exact = 2 * state if config.train.reduction == "exact" else 0  # a 64-bit number a parameter
    saves_on_the_way = config.checkpoint.save_interval > 0
    return MemoryEstimate(
        weights_bytes=state,
        gradients_bytes=state + exact,
        optimizer_bytes=2 * state,
        activations_bytes=_activations(config, fake, rows, row_tokens, num_targets),
        save_copy_bytes=3 * state if on_cpu and saves_on_the_way else 0,
        process_bytes=resident_bytes() if on_cpu else 0,
        rows=rows,
        row_tokens=row_tokens,
        available_bytes=available_bytes,
    )


def _activations(
    config: RunConfig, fake: FakeModel, rows: int, row_tokens: int, num_targets: int
) -> int | None:
    """Counted on fake tensors; with checkpointing, which keeps little, from the layers' sizes."""
    if config.train.activation_checkpointing:
        shape = ModelShape.of(fake.model)
        return rows * row_tokens * shape.bytes_per_token(config.train.dtype, recomputed=True)
    dtype = AUTOCAST_DTYPES.get(config.train.dtype)
    return fake.activation_bytes(rows, row_tokens, num_targets, dtype)


def available_memory(device: torch.device, ranks_here: int) -> int | None:
    """Bytes that this rank may hold: a GPU's free memory, or its share of the machine's.

    On the CPU what this process holds already counts as available. None: unknown.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = free_memory()
    return None if free is None else free // ranks_here + resident_bytes()
