"""How much memory a run takes at its largest micro-batch: an estimate, made before it starts."""

import resource
from dataclasses import dataclass
from pathlib import Path

import torch

from sftctl.config.schema import RunConfig
from sftctl.data.loader import longest_micro_batch, step_shape
from sftctl.data.store import TokenStore
from sftctl.model.fake import FakeModel
from sftctl.train.engine.state import AUTOCAST_DTYPES
from sftctl.train.preflight.rehearsal import ModelShape

ESTIMATE_ERROR_RATIO = 0.25
"""The margin that a finding names; docs/preflight.md says what was measured."""

_WORD = 4  # bytes of a float32: weights, gradients and both moments are that


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes on one rank; all zeros but `available_bytes` would be an empty run."""

    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int | None  # kept between forward and backward; None: could not be told
    save_copy_bytes: int  # of the state, while it is written; in the CPU's memory
    process_bytes: int  # Python, torch and all that is loaded already; in the CPU's memory
    rows: int  # of the largest micro-batch
    row_tokens: int
    available_bytes: int | None  # for this rank, now

    @property
    def certain_bytes(self) -> int:
        """What no smaller micro-batch would save."""
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
    config: RunConfig, store: TokenStore, fake: FakeModel, num_ranks: int, ranks_here: int
) -> MemoryEstimate:
    """What one of `num_ranks` ranks takes, of which `ranks_here` share this machine."""
    on_cpu = fake.device.type == "cpu"
    shards = num_ranks if config.train.strategy == "fsdp" else 1
    state = fake.num_parameters * _WORD // shards
    shape = step_shape(config.train, fake.device.type, world_size=num_ranks)
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
        process_bytes=_resident_bytes() if on_cpu else 0,
        rows=rows,
        row_tokens=row_tokens,
        available_bytes=_available_bytes(fake.device, ranks_here),
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


def _resident_bytes() -> int:
    """Of this process, now."""
    statm = Path("/proc/self/statm")
    if statm.is_file():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _available_bytes(device: torch.device, ranks_here: int) -> int | None:
    """Free on a GPU; else what this machine and this container still give, and we hold already."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    limits = [_meminfo_available(), _cgroup_left()]
    known = [limit for limit in limits if limit is not None]
    return min(known) // ranks_here + _resident_bytes() if known else None


def _meminfo_available() -> int | None:
    file = Path("/proc/meminfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if "MemAvailable" in line), None)


def _cgroup_left(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Of the memory limit of this container, by cgroup v2; None: no limit."""
    limit, used = root / "memory.max", root / "memory.current"
    if not (limit.is_file() and used.is_file()) or not limit.read_text().strip().isdigit():
        return None
    return max(0, int(limit.read_text()) - int(used.read_text()))
