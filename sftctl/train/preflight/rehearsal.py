"""What fits: micro-batches by the size of the model and device, and the largest one tried out."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from sftctl.config.schema import RunConfig
from sftctl.data.loader import StepShape, longest_micro_batch
from sftctl.data.microbatch import Examples
from sftctl.errors import ConfigError
from sftctl.model.loss import CHUNK_LOGITS
from sftctl.train.engine.state import AUTOCAST_DTYPES, TrainState
from sftctl.world import World

_STATE_BYTES = 16  # a parameter: weight, gradient, two moments, in float32
_RESERVED = 1 << 30  # the CUDA context and what its libraries hold
_USABLE = 0.85  # the rest goes to fragments
_SMALLEST, _LARGEST = 256, 65536


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes that decide what a token needs in a forward and backward pass."""

    num_parameters: int
    num_layers: int
    width: int  # of the residual stream
    inner: int  # numbers per token and layer in queries, keys, values and feed-forward

    @classmethod
    def of(cls, model: Any) -> "ModelShape":
        """From a model's configuration; what has no such name is taken as the usual multiple."""
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
        attention = 3 * heads * head_dim + 4 * kv_heads * head_dim
        num_parameters = sum(p.numel() for p in model.parameters())
        return cls(num_parameters, config.num_hidden_layers, width, attention + 4 * feed_forward)

    def bytes_per_token(self, dtype: str, recomputed: bool) -> int:
        """What the backward pass keeps of a token: float32 norms, the rest in `dtype`.

        With activation checkpointing only each layer's input is kept, and one layer whole.
        """
        small = 2 if dtype in AUTOCAST_DTYPES else 4
        layer = self.width * (4 * 4 + 4 * small) + self.inner * small
        kept = self.num_layers * self.width * 4 + layer if recomputed else self.num_layers * layer
        return kept + 4 * 4 * self.width


def fitting_tokens(shape: ModelShape, total_bytes: int, num_shares: int, config: RunConfig) -> int:
    """Tokens of a micro-batch on a device of `total_bytes`, the model's state in `num_shares`.

    A multiple of 256. Pure: free memory and timings don't count, so two runs resolve alike.
    """
    state = _STATE_BYTES * shape.num_parameters // num_shares
    room = int(_USABLE * (total_bytes - _RESERVED)) - state - 4 * 4 * CHUNK_LOGITS
    per_token = shape.bytes_per_token(config.train.dtype, config.train.activation_checkpointing)
    return min(_LARGEST, max(_SMALLEST, room // per_token // 256 * 256))


def resolve_micro_batch(config: RunConfig, model: Any, world: World) -> RunConfig:
    """`micro_batch_tokens = auto` -> what the smallest device of all ranks holds."""
    if config.train.micro_batch_tokens != "auto":
        return config
    tokens = config.train.pass_tokens
    if world.device.type == "cuda":
        total = torch.cuda.get_device_properties(world.device).total_memory
        shares = world.world_size if config.train.strategy == "fsdp" else 1
        tokens = fitting_tokens(ModelShape.of(model), total, shares, config)
        tokens = min(world.gather(tokens))
    return replace(config, train=replace(config.train, micro_batch_tokens=tokens))


def rehearse(state: TrainState, store: Examples, shape: StepShape, world: World) -> None:
    """Run the largest micro-batch forward and backward, and undo it.

    Out of memory then is one ConfigError before the first step, not a crash in the middle.
    """
    batch = longest_micro_batch(store, shape).to(world.device)
    rows, width = batch.input_ids.shape
    torch.manual_seed(0)
    try:
        with state.autocast(world.device):
            loss_sum = state.loss_module(*batch.tensors)
        (loss_sum * 0).backward()
    except (torch.OutOfMemoryError, RuntimeError) as problem:
        if not _is_out_of_memory(problem):
            raise
        raise _too_large(rows, width, shape.micro_batch_tokens) from problem
    finally:
        state.optimizer.zero_grad(set_to_none=True)
        if world.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(world.device)


@contextmanager
def shortage_told(micro_batch_tokens: int) -> Iterator[None]:
    """Out of memory after all, as when another process takes it: one error, and what to do."""
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as problem:
        if not _is_out_of_memory(problem):
            raise
        raise ConfigError(
            f"train.micro_batch_tokens: {micro_batch_tokens}: out of memory",
            hint="lower it in the run's config.toml, or free memory; then `sftctl resume`",
        ) from problem


def _is_out_of_memory(problem: RuntimeError) -> bool:
    return isinstance(problem, torch.OutOfMemoryError) or bool(
        re.search(r"out of memory|not enough memory|can't allocate memory", str(problem))
    )


def _too_large(rows: int, width: int, micro_batch_tokens: int) -> ConfigError:
    message = f"train.micro_batch_tokens: {micro_batch_tokens}: out of memory"
    if rows > 1:
        fewer = rows // 2 * width
        return ConfigError(
            f"{message} with {rows} rows of {width} tokens",
            hint=f"--micro-batch-tokens {fewer} is half of that, or "
            "--set train.activation_checkpointing=true",
        )
    return ConfigError(
        f"{message} with one example of {width} tokens",
        hint="--set train.activation_checkpointing=true, --strategy fsdp on several ranks, or "
        "prepare the data with a smaller --max-seq-len",
    )
