"""Estimate how much memory a run takes, and choose `micro_batch_tokens = auto`."""

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from sftctl.config.schema import RunConfig
from sftctl.data.loading.loader import longest_micro_batch
from sftctl.data.loading.microbatch import Examples, MicroBatch
from sftctl.data.step_shape import StepShape
from sftctl.machine import free_memory, resident_bytes
from sftctl.model.adapter.base import base_dtype
from sftctl.model.adapter.lora import lora_config, quantizable_layers
from sftctl.model.adapter.nf4 import BYTES_PER_WEIGHT
from sftctl.model.fake import FakeModel
from sftctl.model.loss import CHUNK_LOGITS, chunk_rows
from sftctl.train.engine.state import COMPUTE_DTYPES
from sftctl.world import World

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ESTIMATE_ERROR_RATIO = 0.25
"""The error of the estimate that the findings state. It was measured (docs/preflight.md)."""

_WORD = 4  # bytes of a float32: one weight, one gradient or one moment of the optimizer
_LOGITS_COPIES = {"cpu": 7, "cuda": 3}  # the CPU's number was measured (docs/preflight.md)
_HOLES = 0.25  # of the activations: gaps in a CPU's heap that can't be used again, as measured
_RESERVED = 1 << 30  # bytes for the CUDA context and its libraries
_USABLE = 0.85  # of a GPU's memory; the rest is lost to fragmentation
_SMALLEST, _LARGEST = 256, 65536  # limits of `micro_batch_tokens = auto`


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """The peak memory of one rank in bytes, by purpose."""

    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int | None  # kept between forward and backward; None: unknown
    save_copy_bytes: int  # the copy of the state during a save; in the CPU's memory
    process_bytes: int  # Python, torch and everything loaded already; in the CPU's memory
    rows: int  # of the largest micro-batch: always 1, because examples are laid end to end
    row_tokens: int
    available_bytes: int | None  # for this rank, now; None: unknown
    working_bytes: int = 0  # used for a moment in a pass, or kept by torch's kernels on a CPU

    @property
    def certain_bytes(self) -> int:
        """The bytes that every size of micro-batch needs."""
        return self.weights_bytes + self.gradients_bytes + self.optimizer_bytes

    @property
    def total_bytes(self) -> int:
        """The peak on the device that computes."""
        return (
            self.certain_bytes
            + (self.activations_bytes or 0)
            + self.working_bytes
            + self.save_copy_bytes
            + self.process_bytes
        )

    def to_json(self) -> dict[str, Any]:
        """The fields, and their sum `total_bytes`."""
        return {**asdict(self), "total_bytes": self.total_bytes}


def estimate_memory(
    config: RunConfig,
    store: Examples,
    fake: FakeModel,
    shape: StepShape,
    available_bytes: int | None,
) -> MemoryEstimate:
    """The memory of a rank whose steps have this `shape`. `available_bytes` is only copied."""
    on_cpu = fake.device.type == "cpu"
    num_shards = shape.world_size if config.train.strategy == "fsdp" else 1
    state = _state_bytes(config, fake) // num_shards
    trained = fake.num_trained * _WORD // num_shards  # only these have gradients and moments
    batch = longest_micro_batch(store, shape)
    # In bfloat16 the model has bfloat16 copies of its weights, and a pass makes bfloat16 gradients.
    has_copies = config.train.dtype == "bfloat16" and num_shards == 1
    exact = 2 * trained if config.train.reduction == "exact" else 0  # 64 bits per parameter
    saved = 2 * trained + (trained if config.adapter.lora else state)
    activations = _activations(config, fake, batch)
    holes = int(_HOLES * (activations or 0)) if on_cpu else 0
    gathered = _gathered(config, fake) if num_shards > 1 else 0
    estimate = MemoryEstimate(
        weights_bytes=state + (trained // 2 if config.adapter.lora else state // 2) * has_copies,
        gradients_bytes=trained + (trained // 2 if has_copies else 0) + exact,
        optimizer_bytes=2 * trained,
        activations_bytes=activations,
        save_copy_bytes=saved if on_cpu and config.saves_on_the_way else 0,
        process_bytes=resident_bytes() if on_cpu else 0,
        rows=1,
        row_tokens=batch.input_ids.numel(),
        available_bytes=available_bytes,
        working_bytes=_working(fake, batch) + gathered + holes,
    )
    return _with_loading(config, fake, estimate)


def _state_bytes(config: RunConfig, fake: FakeModel) -> int:
    """Bytes of all weights.

    They are float32. Only the frozen base of an adapter has another dtype.
    """
    if not config.adapter.lora:
        return fake.num_parameters * _WORD
    frozen, itemsize = fake.num_parameters - fake.num_trained, base_dtype(config).itemsize
    narrow = sum(_narrow_weights(config, fake))
    held = int(narrow * BYTES_PER_WEIGHT) + (frozen - narrow) * itemsize
    return held + fake.num_trained * _WORD


def _narrow_weights(config: RunConfig, fake: FakeModel) -> list[int]:
    """The number of weights of each layer that is held in nf4; [] if nothing is quantized."""
    if config.adapter.quantize is None:
        return []
    names = quantizable_layers(fake.model, lora_config(fake.model).modules_to_save or ())
    return [fake.model.get_submodule(name).weight.numel() for name in names]


def _with_loading(config: RunConfig, fake: FakeModel, estimate: MemoryEstimate) -> MemoryEstimate:
    """Add what nf4 needs: one dequantized layer, and on a CPU the base before its quantization."""
    layers = _narrow_weights(config, fake)
    if not layers:
        return estimate
    working = estimate.working_bytes + max(layers) * COMPUTE_DTYPES[config.train.dtype].itemsize
    estimate = replace(estimate, working_bytes=working)
    loading = fake.num_parameters * fake.stored_dtype.itemsize + estimate.process_bytes
    missing = loading - estimate.total_bytes if fake.device.type == "cpu" else 0
    return replace(estimate, working_bytes=working + max(0, missing))


def _working(fake: FakeModel, batch: MicroBatch) -> int:
    """The float32 logits of one chunk in the head, their copies, and gaps that they leave in the
    heap.
    """
    vocabulary: int = fake.model.get_output_embeddings().weight.shape[0]
    rows = min(len(batch.target_ids), chunk_rows(vocabulary))
    return _LOGITS_COPIES[fake.device.type] * rows * vocabulary * _WORD


def _gathered(config: RunConfig, fake: FakeModel) -> int:
    """The weights that FSDP gathers for a pass.

    On a CPU, the complete model is added: FSDP makes its shards from it.
    """
    gathered = fake.num_parameters * (2 if config.train.dtype == "bfloat16" else _WORD)
    return gathered + (fake.num_parameters * _WORD if fake.device.type == "cpu" else 0)


def _activations(config: RunConfig, fake: FakeModel, batch: MicroBatch) -> int | None:
    """Bytes kept for the backward pass, counted on fake tensors.

    With activation checkpointing they are computed from the sizes of the layers.
    """
    num_tokens = batch.input_ids.numel()
    if config.train.activation_checkpointing:
        shape = ModelShape.of(fake.model)
        return num_tokens * shape.bytes_per_token(config.train.dtype, recomputed=True)
    dtype = COMPUTE_DTYPES[config.train.dtype]
    return fake.activation_bytes(num_tokens, len(batch.target_ids), dtype)


def available_memory(device: torch.device, ranks_here: int) -> int | None:
    """The bytes that this rank may use in total; None: unknown.

    On a GPU, this is its free memory. On a CPU, it is the rank's share of the machine's free
    memory, and what this process holds already.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = free_memory()
    return None if free is None else free // ranks_here + resident_bytes()


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a model that decide how much memory a token needs in a pass."""

    num_parameters: int
    num_trained: int
    num_layers: int
    width: int  # the hidden size
    inner: int  # numbers per token and layer in queries, keys, values and feed-forward

    @classmethod
    def of(cls, model: "PreTrainedModel") -> "ModelShape":
        """Read the sizes from a model's configuration. A missing size gets its usual value."""
        config = model.config.get_text_config()
        width = config.hidden_size
        heads = config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or width // heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        chosen = getattr(config, "num_experts_per_tok", None) or 1
        feed_forward = chosen * (
            getattr(config, "moe_intermediate_size", None)
            or getattr(config, "intermediate_size", None)
            or 4 * width
        )
        attention = 5 * heads * head_dim + 4 * kv_heads * head_dim  # keys, values once per head
        num_parameters = sum(p.numel() for p in model.parameters())
        num_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        return cls(
            num_parameters,
            num_trained,
            config.num_hidden_layers,
            width,
            attention + 4 * feed_forward,
        )

    def bytes_per_token(self, dtype: str, recomputed: bool) -> int:
        """Bytes kept per token for the backward pass: norms in float32, the rest in `dtype`.

        `recomputed` means activation checkpointing: the input of each layer is kept, and everything
        of one layer.
        """
        small = 4 if dtype == "float32" else 2
        layer = self.width * (4 * 4 + 4 * small) + self.inner * small
        kept = self.num_layers * self.width * 4 + layer if recomputed else self.num_layers * layer
        return kept + 4 * 4 * self.width


def fitting_tokens(shape: ModelShape, total_bytes: int, num_shares: int, config: RunConfig) -> int:
    """The tokens of a micro-batch that fit on a device of `total_bytes`; a multiple of 256.

    The model's state is divided into `num_shares`. Free memory and timings have no influence, so
    equal runs get the same number.
    """
    state = (_WORD * shape.num_parameters + 3 * _WORD * shape.num_trained) // num_shares
    room = int(_USABLE * (total_bytes - _RESERVED)) - state - 4 * 4 * CHUNK_LOGITS
    per_token = shape.bytes_per_token(config.train.dtype, config.train.activation_checkpointing)
    return min(_LARGEST, max(_SMALLEST, room // per_token // 256 * 256))


def resolve_micro_batch(
    config: RunConfig, model: "PreTrainedModel", world: World, num_ranks: int
) -> RunConfig:
    """Replace `micro_batch_tokens = auto` by a number that fits on the device with the least
    memory.

    `num_ranks` is the number of ranks of the run. In a dry run, this world has only one rank.
    """
    if config.train.micro_batch_tokens != "auto":
        return config
    tokens = config.train.pass_tokens
    if world.device.type == "cuda":
        total = torch.cuda.get_device_properties(world.device).total_memory
        shares = num_ranks if config.train.strategy == "fsdp" else 1
        tokens = fitting_tokens(ModelShape.of(model), total, shares, config)
        tokens = min(world.gather(tokens))
    return replace(config, train=replace(config.train, micro_batch_tokens=tokens))
