"""build_state: the engine around a model, as the configuration and the device ask."""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from sftctl.config.schema import RunConfig
from sftctl.errors import ConfigError
from sftctl.model.loss import LossModule
from sftctl.model.onednn import use_onednn
from sftctl.model.row_attention import use_row_attention, why_rows_mix
from sftctl.train.engine.exact_sum import ExactSum
from sftctl.train.engine.optim import build_optimizer
from sftctl.train.engine.parallel import blocks, replicated, with_fsdp
from sftctl.train.engine.state import Progress, TrainState
from sftctl.train.engine.weights import Weights
from sftctl.world import World

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def build_state(
    model: "PreTrainedModel", config: RunConfig, world: World, longest_row: int
) -> TrainState:
    """Move the model to its device and wrap it as the configuration asks; the state at step 0.

    `longest_row` is the length of the longest example, in tokens.
    """
    train = config.train
    loss_module = LossModule(model).train()
    why_alone = world.on_main(lambda: why_rows_mix(model, longest_row))
    own_attention = str(model.config._attn_implementation)
    if why_alone is None:
        use_row_attention(model)
        loss_module.attends_by_rows = True
    _adapt_passes(loss_module, config, world.device)
    compute_dtype = torch.bfloat16 if train.dtype == "bfloat16" else None
    is_sharded = world.world_size > 1 and train.strategy == "fsdp" and train.reduction != "exact"
    if is_sharded:  # moves each part when it is sharded, because the device may not hold them all
        with_fsdp(loss_module, world, compute_dtype)
        weights = Weights(model)
    else:
        replicated(loss_module.to(world.device), world)
        weights = Weights(model, compute_dtype)
        weights.use_one_buffer()
        loss_module.head_weight = weights.master_of(model.get_output_embeddings().weight)
    scaler = torch.amp.GradScaler(world.device.type, enabled=train.dtype == "float16")
    optimizer = build_optimizer(weights.trained, config.optim)
    exact = ExactSum(weights.trained) if train.reduction == "exact" else None
    return TrainState(
        loss_module=loss_module,
        weights=weights,
        optimizer=optimizer,
        scaler=scaler,
        progress=Progress(),
        dtype=train.dtype,
        own_attention=own_attention,
        exact=exact,
        why_rows_alone=why_alone,
    )


def _adapt_passes(loss_module: LossModule, config: RunConfig, device: torch.device) -> None:
    """Set up how passes run: with oneDNN, compiled, or with activation checkpointing."""
    if device.type == "cpu" and not config.train.compile:
        use_onednn(loss_module)
    if config.train.compile:
        for block in blocks(loss_module):
            block.compile(dynamic=True)  # micro-batches differ in their number of tokens
    if config.train.activation_checkpointing:
        try:
            loss_module.model.activation_checkpointing_enable({"use_reentrant": False})
        except ValueError as problem:
            raise ConfigError(
                f"train.activation_checkpointing: {problem}",
                hint="turn it off for this model; a smaller --micro-batch-tokens saves memory too",
            ) from problem


def checkpoint_bytes(model: "PreTrainedModel") -> int:
    """The size of a checkpoint on disk: weights and two moments, tied tensors counted once."""
    buffers = {t.untyped_storage()._cdata: t for t in model.state_dict().values()}
    weights = sum(tensor.numel() * tensor.element_size() for tensor in buffers.values())
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return int(weights + 2 * trained)


def choose_dtype(config: RunConfig, device: torch.device) -> RunConfig:
    """Replace `train.dtype = auto` by what suits the device; refuse what it can't do."""
    setting = config.train.dtype
    cuda = device.type == "cuda"
    bfloat16 = not cuda or torch.cuda.is_bf16_supported()
    if setting == "bfloat16" and not bfloat16:
        raise ConfigError("train.dtype: this GPU has no bfloat16", hint="--dtype float16, or auto")
    if setting == "auto":
        setting = "float32" if not cuda else "bfloat16" if bfloat16 else "float16"
    return replace(config, train=replace(config.train, dtype=setting))
