"""TrainState: what a step changes, and the one list of what survives a crash."""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from sftctl.config.schema import RunConfig
from sftctl.data.plan import DataPosition
from sftctl.errors import ConfigError
from sftctl.model.loss import LossModule
from sftctl.model.onednn import use_onednn
from sftctl.train.engine.exact_sum import ExactSum
from sftctl.train.engine.optim import NamedOptimizer, build_optimizer
from sftctl.train.engine.parallel import alike, blocks, copied, sharded
from sftctl.train.engine.stateful import Stateful
from sftctl.world import World

AUTOCAST_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Progress:
    """How far the run is: counted when a step is done, never when its data is fetched."""

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    examples_seen: int = 0
    tokens_seen: int = 0
    validation: dict[str, float] | None = None  # first, best, last loss, step of the last; or none

    def advance(self, steps_per_epoch: int, num_examples: int, num_tokens: int) -> None:
        """One more step done."""
        position = DataPosition(self.epoch, self.step_in_epoch).advanced(steps_per_epoch)
        self.epoch, self.step_in_epoch = position.epoch, position.step
        self.step += 1
        self.examples_seen += num_examples
        self.tokens_seen += num_tokens

    def validated(self, loss: float) -> None:
        """Take note of a validation loss."""
        seen = self.validation or {"first": loss, "best": loss}
        finite = [one for one in (loss, seen["best"]) if math.isfinite(one)]
        best = min(finite, default=math.nan)
        self.validation = {**seen, "best": best, "last": loss, "step": self.step}

    @property
    def is_validated(self) -> bool:
        """Whether the last validation was that of this step."""
        return self.validation is not None and self.validation.get("step") == self.step

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for item in fields(self):
            setattr(self, item.name, state_dict[item.name])
        if self.validation is not None:  # JSON has no number for what is none
            self.validation = {k: math.nan if v is None else v for k, v in self.validation.items()}


@dataclass
class TrainState:
    """Everything that a step reads and changes."""

    loss_module: LossModule
    module: torch.nn.Module  # what is called: the loss module (FSDP's too), or DDP around it
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler  # does nothing unless the dtype is float16
    progress: Progress
    dtype: str
    exact: ExactSum | None = None  # what sums gradients in place of DDP, where bits must not differ

    @property
    def lockstep(self) -> bool:
        """True: every rank must run equally many passes, for FSDP gathers weights in each."""
        return isinstance(self.module, FSDPModule)

    def reshard(self) -> None:
        """After a pass without gradients: FSDP leaves the root's parameters whole, as they were."""
        if isinstance(self.module, FSDPModule):
            self.module.reshard()

    def statefuls(self) -> dict[str, Stateful]:
        """Everything a resumed run needs, under the names used in the checkpoint.

        Missing on purpose, being pure functions of these and the configuration: the learning rate
        (of the step), the order of the data (of seed and epoch), randomness (of seed and step).
        """
        self.reshard()
        model = self.loss_module.model
        return {
            "model": model,
            "optimizer": NamedOptimizer(self.optimizer, model),
            "scaler": self.scaler,
            "progress": self.progress,
        }

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors of `statefuls`, themselves: filling them restores the state."""
        return {
            f"{name}.{key}": value
            for name, stateful in self.statefuls().items()
            for key, value in stateful.state_dict().items()
            if isinstance(value, torch.Tensor)
        }

    def autocast(self, device: torch.device) -> torch.autocast:
        """Mixed precision as the dtype asks for it; float32 has none."""
        dtype = AUTOCAST_DTYPES.get(self.dtype)
        return torch.autocast(device.type, dtype, enabled=dtype is not None)

    def exchange_gradients(self, now: bool) -> AbstractContextManager[None]:
        """Around forward and backward: DDP sums over ranks in the step's last micro-batch only.

        FSDP sums in each, for a gradient that waits would be whole on every rank.
        """
        if isinstance(self.module, DistributedDataParallel) and not now:
            return self.module.no_sync()
        return nullcontext()


def build_state(model: Any, config: RunConfig, world: World) -> TrainState:
    """Move the model to its device and put the engine around it; the state is that of step 0."""
    loss_module = LossModule(model).train()
    _adapt_passes(loss_module, config, world.device)
    module: torch.nn.Module
    if world.world_size == 1:
        module = loss_module.to(world.device)
    elif config.train.reduction == "exact":
        module = alike(loss_module.to(world.device), world)
    elif config.train.strategy == "ddp":
        module = copied(loss_module.to(world.device), world)
    else:  # each part goes to the device when it is sharded: the whole need not fit there
        module = sharded(loss_module, world)
    scaler = torch.amp.GradScaler(world.device.type, enabled=config.train.dtype == "float16")
    optimizer = build_optimizer(model, config.optim)
    exact = ExactSum(loss_module) if config.train.reduction == "exact" else None
    return TrainState(loss_module, module, optimizer, scaler, Progress(), config.train.dtype, exact)


def _adapt_passes(loss_module: LossModule, config: RunConfig, device: torch.device) -> None:
    """Layers compiled, or run again in the backward pass, as the options say; fast products."""
    if device.type == "cpu" and not config.train.compile:
        use_onednn(loss_module)
    if config.train.compile:
        for block in blocks(loss_module):
            block.compile(dynamic=True)  # widths differ from micro-batch to micro-batch
    if config.train.activation_checkpointing:
        try:
            loss_module.model.activation_checkpointing_enable({"use_reentrant": False})
        except ValueError as problem:
            raise ConfigError(
                f"train.activation_checkpointing: {problem}",
                hint="leave it out for this model; a smaller --micro-batch-tokens saves memory too",
            ) from problem


def checkpoint_bytes(model: Any) -> int:
    """What a checkpoint of `model` takes on disk: weights and two moments, tied tensors once."""
    buffers = {t.untyped_storage()._cdata: t for t in model.state_dict().values()}
    weights = sum(tensor.numel() * tensor.element_size() for tensor in buffers.values())
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return int(weights + 2 * trained)


def choose_dtype(config: RunConfig, device: torch.device) -> RunConfig:
    """`train.dtype = auto` -> what suits the device; refuses what the device can't do."""
    setting = config.train.dtype
    cuda = device.type == "cuda"
    bfloat16 = not cuda or torch.cuda.is_bf16_supported()
    if setting == "bfloat16" and not bfloat16:
        raise ConfigError("train.dtype: this GPU has no bfloat16", hint="--dtype float16, or auto")
    if setting == "auto":
        setting = "float32" if not cuda else "bfloat16" if bfloat16 else "float16"
    return replace(config, train=replace(config.train, dtype=setting))
