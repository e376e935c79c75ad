"""TrainState: what a step changes, and the one list of what a checkpoint saves."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch.distributed.fsdp import FSDPModule

from sftctl.checkpoint.layout import CheckpointManifest
from sftctl.config.schema import RunConfig
from sftctl.data.plan import DataPosition
from sftctl.errors import ConfigError
from sftctl.model.loss import LossModule
from sftctl.model.onednn import use_onednn
from sftctl.model.row_attention import use_row_attention, why_rows_mix
from sftctl.train.engine.exact_sum import ExactSum
from sftctl.train.engine.optim import NamedOptimizer, build_optimizer
from sftctl.train.engine.parallel import blocks, replicated, with_fsdp
from sftctl.train.engine.weights import Weights
from sftctl.world import World

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Numbers = Mapping[str, Mapping[str, Any]]
"""Name of a Stateful -> its values that are not tensors."""

COMPUTE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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
    weights: Weights
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler  # enabled only for float16
    progress: Progress
    dtype: str
    own_attention: str  # the model's own attention function, by its name in transformers
    exact: ExactSum | None = None  # sums the gradients if train.reduction is "exact"
    why_rows_alone: str | None = None  # why a pass holds one row; None: it holds several

    @property
    def lockstep(self) -> bool:
        """Whether all ranks must run equally many passes: FSDP gathers weights in each pass."""
        return isinstance(self.loss_module, FSDPModule)

    @property
    def rows_warning(self) -> str | None:
        """One line if this model cannot hold several rows in a pass."""
        if self.why_rows_alone is None:
            return None
        return (
            "one example in each pass, which is slower: laid end to end in one pass, examples "
            f"would change each other in this model ({self.why_rows_alone})"
        )

    def reshard(self) -> None:
        """Free what FSDP gathered. After a pass without backward it keeps the root's parameters."""
        if isinstance(self.loss_module, FSDPModule):
            self.loss_module.reshard()

    def statefuls(self) -> dict[str, Stateful]:
        """The list of everything that a checkpoint saves and a resume restores, by name.

        The learning rate, the order of the data and all randomness are not in it: they are pure
        functions of step, epoch, seed and configuration.
        """
        self.reshard()
        return {
            "model": self.weights,
            "optimizer": NamedOptimizer(self.optimizer, self.weights.named),
            "scaler": self.scaler,
            "progress": self.progress,
        }

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors in `statefuls`, not copies. After filling them call `weights.publish`."""
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
        """The autocast context of float16. The other dtypes need none."""
        return torch.autocast(device.type, torch.float16, enabled=self.dtype == "float16")


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
