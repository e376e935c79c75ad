"""build_state: set up the model, its weights and its optimizer for training."""

from typing import TYPE_CHECKING

import torch

from sftctl.config.schema import RunConfig
from sftctl.data.loading.microbatch import Examples, collate
from sftctl.errors import ConfigError
from sftctl.model.adapter.lora import saved_tensors
from sftctl.model.loss import LossModule, check_head
from sftctl.model.onednn import use_onednn
from sftctl.model.row_attention import use_row_attention, why_rows_mix
from sftctl.model.trainable import learning_rate_factors, select_trained
from sftctl.train.engine.compiled import compile_blocks, uncompiled
from sftctl.train.engine.exact_sum import ExactSum
from sftctl.train.engine.optim import build_optimizer
from sftctl.train.engine.parallel import replicated, with_fsdp
from sftctl.train.engine.state import Progress, TrainState
from sftctl.train.engine.weights import Weights
from sftctl.world import World

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def build_state(
    model: "PreTrainedModel", config: RunConfig, world: World, longest_row: int
) -> TrainState:
    """Move the model to its device and wrap it as configured. Returns the state at step 0.

    `longest_row` is the length of the longest example, in tokens.
    """
    train = config.train
    select_trained(model, train.train_only, train.freeze)
    factors = learning_rate_factors(model, config.optim.groups)
    loss_module = LossModule(model).train()
    why_alone = world.on_main(lambda: why_rows_mix(model, longest_row))
    own_attention = str(model.config._attn_implementation)
    if why_alone is None:
        use_row_attention(model)
        loss_module.attends_by_rows = True
    _adapt_passes(loss_module, config, world.device)
    compute_dtype = torch.bfloat16 if train.dtype == "bfloat16" else None
    is_sharded = world.world_size > 1 and train.strategy == "fsdp" and train.reduction != "exact"
    if is_sharded:  # FSDP moves one part at a time: the device may not hold the complete model
        with_fsdp(loss_module, world, compute_dtype)
        weights = Weights(model)
    else:
        replicated(loss_module.to(world.device), world)
        weights = Weights(model, compute_dtype)
        weights.use_one_buffer()
        loss_module.head_weight = weights.master_of(model.get_output_embeddings().weight)
    scaler = torch.amp.GradScaler(world.device.type, enabled=train.dtype == "float16")
    optimizer = build_optimizer(weights.named, config.optim, factors)
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
        compile_blocks(loss_module)
    if config.train.activation_checkpointing:
        try:
            loss_module.model.activation_checkpointing_enable({"use_reentrant": False})
        except ValueError as problem:
            raise ConfigError(
                f"train.activation_checkpointing: {problem}",
                hint="turn it off for this model; a smaller --micro-batch-tokens saves memory too",
            ) from problem


def checkpoint_bytes(model: "PreTrainedModel") -> int:
    """The bytes of a checkpoint on disk: the saved tensors, and two moments per trained parameter.

    Tied tensors are counted once.
    """
    buffers = {t.untyped_storage()._cdata: t for t in saved_tensors(model).values()}
    weights = sum(tensor.numel() * tensor.element_size() for tensor in buffers.values())
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return int(weights + 2 * trained)


def choose_head(state: TrainState, examples: Examples, world: World) -> str | None:
    """Decide whether the loss uses the head's weight directly, or the model's own forward.

    The weight is used if both ways give the same loss for the shortest example. Otherwise the own
    forward is used, and the returned warning says why.
    """
    shortest = int(examples.lengths.argmin())
    example = collate(examples, (shortest,), 0).to(world.device)
    with uncompiled(state.loss_module):
        check = check_head(state.loss_module, example.tensors)
    state.reshard()
    state.loss_module.uses_own_forward = not check.is_plain
    return None if check.is_plain else check.warning
