"""TrainState: what a step changes, and the one list of what a checkpoint saves."""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from sftctl.checkpoint.layout import CheckpointManifest
from sftctl.config.schema import RunConfig
from sftctl.data.plan import DataPosition
from sftctl.errors import ConfigError
from sftctl.model.loss import LossModule
from sftctl.model.onednn import use_onednn
from sftctl.train.engine.exact_sum import ExactSum
from sftctl.train.engine.optim import NamedOptimizer, build_optimizer
from sftctl.train.engine.parallel import blocks, replicated, with_ddp, with_fsdp
from sftctl.world import World

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Numbers = Mapping[str, Mapping[str, Any]]
"""Name of a Stateful -> its values that are not tensors."""

AUTOCAST_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@runtime_checkable
class Stateful(Protocol):
    """Something whose state is tensors and plain JSON values under string keys.

    The method names are those of torch.distributed.checkpoint.
    """

    def state_dict(self) -> dict[str, Any]:
        """The state as it is now: the tensors themselves, not copies."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state of the form that `state_dict` returns."""
        ...


@dataclass
class Progress:
    """How far the run is. It counts a step when it is done, not when its data is fetched."""

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    examples_seen: int = 0
    tokens_seen: int = 0
    validation: dict[str, float] | None = None  # first, best and last loss; step of the last

    def advance(self, steps_per_epoch: int, num_examples: int, num_tokens: int) -> None:
        """Count one step."""
        position = DataPosition(self.epoch, self.step_in_epoch).advanced(steps_per_epoch)
        self.epoch, self.step_in_epoch = position.epoch, position.step
        self.step += 1
        self.examples_seen += num_examples
        self.tokens_seen += num_tokens

    def validated(self, loss: float) -> None:
        """Record the validation loss of the current step."""
        seen = self.validation or {"first": loss, "best": loss}
        finite = [one for one in (loss, seen["best"]) if math.isfinite(one)]
        best = min(finite, default=math.nan)
        self.validation = {**seen, "best": best, "last": loss, "step": self.step}

    @property
    def is_validated(self) -> bool:
        """Whether the current step has been validated."""
        return self.validation is not None and self.validation.get("step") == self.step

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for item in fields(self):
            setattr(self, item.name, state_dict[item.name])
        if self.validation is not None:  # JSON has null in place of NaN
            self.validation = {k: math.nan if v is None else v for k, v in self.validation.items()}


@dataclass
class TrainState:
    """Everything that a step changes, and the module it runs."""

    loss_module: LossModule
    module: torch.nn.Module  # what a step calls: loss_module itself, or DDP around it
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler  # enabled only for float16
    progress: Progress
    dtype: str
    exact: ExactSum | None = None  # sums the gradients if train.reduction is "exact"

    @property
    def lockstep(self) -> bool:
        """Whether all ranks must run equally many passes: FSDP gathers weights in each pass."""
        return isinstance(self.module, FSDPModule)

    def reshard(self) -> None:
        """Free what FSDP gathered. After a pass without backward it keeps the root's parameters."""
        if isinstance(self.module, FSDPModule):
            self.module.reshard()

    def statefuls(self) -> dict[str, Stateful]:
        """The list of everything that a checkpoint saves and a resume restores, by name.

        The learning rate, the order of the data and all randomness are not in it: they are pure
        functions of step, epoch, seed and configuration.
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
        """The tensors in `statefuls`, not copies: filling them restores the state."""
        return {
            f"{name}.{key}": value
            for name, stateful in self.statefuls().items()
            for key, value in stateful.state_dict().items()
            if isinstance(value, torch.Tensor)
        }

    def numbers(self) -> Numbers:
        """All other values in `statefuls`; Statefuls without any are left out."""
        found = {
            name: {k: v for k, v in one.state_dict().items() if not isinstance(v, torch.Tensor)}
            for name, one in self.statefuls().items()
        }
        return {name: values for name, values in found.items() if values}

    def load_numbers(self, numbers: Numbers) -> None:
        """Restore what `numbers` returned. Names that have no numbers in this state are ignored."""
        statefuls = self.statefuls()
        for name in self.numbers().keys() & numbers.keys():
            statefuls[name].load_state_dict(statefuls[name].state_dict() | dict(numbers[name]))

    def autocast(self, device: torch.device) -> torch.autocast:
        """The autocast context of the dtype; float32 has none."""
        dtype = AUTOCAST_DTYPES.get(self.dtype)
        return torch.autocast(device.type, dtype, enabled=dtype is not None)

    def exchange_gradients(self, now: bool) -> AbstractContextManager[None]:
        """The context of forward and backward: DDP sums over ranks only if `now`.

        FSDP sums in every micro-batch, because otherwise each rank would hold complete gradients.
        """
        if isinstance(self.module, DistributedDataParallel) and not now:
            return self.module.no_sync()
        return nullcontext()


def manifest_fields(numbers: Numbers) -> dict[str, Any]:
    """`TrainState.numbers` as fields of a CheckpointManifest. Progress has fields of its own."""
    others = {
        name: values for name, values in numbers.items() if name not in ("progress", "scaler")
    }
    return {**numbers["progress"], "scaler": numbers.get("scaler"), "numbers": others}


def numbers_in(manifest: CheckpointManifest) -> Numbers:
    """The numbers that `manifest_fields` put into the manifest."""
    progress = {item.name: getattr(manifest, item.name) for item in fields(Progress)}
    scaler = {"scaler": manifest.scaler} if manifest.scaler else {}
    return {"progress": progress, **scaler, **manifest.numbers}


def build_state(model: "PreTrainedModel", config: RunConfig, world: World) -> TrainState:
    """Move the model to its device and wrap it as the configuration asks; the state at step 0."""
    loss_module = LossModule(model).train()
    _adapt_passes(loss_module, config, world.device)
    module: torch.nn.Module
    if world.world_size == 1:
        module = loss_module.to(world.device)
    elif config.train.reduction == "exact":
        module = replicated(loss_module.to(world.device), world)
    elif config.train.strategy == "ddp":
        module = with_ddp(loss_module.to(world.device), world)
    else:  # moves each part when it is sharded, because the device may not hold them all
        module = with_fsdp(loss_module, world)
    scaler = torch.amp.GradScaler(world.device.type, enabled=config.train.dtype == "float16")
    optimizer = build_optimizer(model, config.optim)
    exact = ExactSum(loss_module) if config.train.reduction == "exact" else None
    return TrainState(loss_module, module, optimizer, scaler, Progress(), config.train.dtype, exact)


def _adapt_passes(loss_module: LossModule, config: RunConfig, device: torch.device) -> None:
    """Set up how passes run: with oneDNN, compiled, or with activation checkpointing."""
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
