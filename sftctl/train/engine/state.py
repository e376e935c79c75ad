"""TrainState: everything that a step changes, and the list of what a checkpoint saves."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Protocol, runtime_checkable

import torch
from torch.distributed.fsdp import FSDPModule

from sftctl.checkpoint.layout import CheckpointManifest
from sftctl.checkpoint.save import tied_names
from sftctl.config.evaluation import LOSS, Goal
from sftctl.data.plan import DataPosition
from sftctl.metrics import SourceMetrics
from sftctl.model.folder.computable import NOT_FINITE
from sftctl.model.loss import LossModule
from sftctl.runs.choosing import is_new_best, with_evaluation
from sftctl.train.engine.exact_sum import ExactSum
from sftctl.train.engine.optim import NamedOptimizer
from sftctl.train.engine.weights import Weights

Numbers = Mapping[str, Mapping[str, Any]]
"""Name of a Stateful -> its values that are not tensors."""

COMPUTE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@runtime_checkable
class Stateful(Protocol):
    """An object whose state is a dict of tensors and plain JSON values.

    The methods have the names that torch.distributed.checkpoint uses.
    """

    def state_dict(self) -> dict[str, Any]:
        """The current state: the tensors themselves, not copies."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned."""
        ...


@dataclass
class Progress:
    """How far the run is. A step counts after its update, and not when its data is loaded."""

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    examples_seen: int = 0
    tokens_seen: int = 0
    validation: dict[str, Any] | None = None  # made by `runs.choosing.with_evaluation`
    sources_seen: dict[str, dict[str, int]] = field(default_factory=dict)  # trained, by source

    def advance(
        self,
        steps_per_epoch: int,
        num_examples: int,
        num_tokens: int,
        sources: Mapping[str, SourceMetrics] | None = None,
    ) -> None:
        """Count one step."""
        position = DataPosition(self.epoch, self.step_in_epoch).advanced(steps_per_epoch)
        self.epoch, self.step_in_epoch = position.epoch, position.step
        self.step += 1
        self.examples_seen += num_examples
        self.tokens_seen += num_tokens
        seen = self.sources_seen
        now = {name: one.added_to(seen.get(name)) for name, one in (sources or {}).items()}
        self.sources_seen = {**seen, **now}

    def validated(
        self, loss: float, min_delta: float = 0.0, goal: Goal = LOSS, value: float | None = None
    ) -> None:
        """Record the evaluation of the current step. `with_evaluation` explains the arguments."""
        self.validation = with_evaluation(self.validation, self.step, loss, min_delta, goal, value)

    @property
    def is_validated(self) -> bool:
        """Whether the current step has been validated."""
        return self.validation is not None and self.validation.get("step") == self.step

    @property
    def is_best(self) -> bool:
        """Whether the evaluation of the current step is the best so far."""
        return is_new_best(self.validation, self.step)

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for item in fields(self):
            setattr(self, item.name, state_dict[item.name])
        if self.validation is not None:  # None is a NaN: JSON has null in place of NaN
            self.validation = {k: math.nan if v is None else v for k, v in self.validation.items()}


@dataclass
class TrainState:
    """Everything that a step changes, and the module that computes the loss."""

    loss_module: LossModule
    weights: Weights
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler  # enabled only for float16
    progress: Progress
    dtype: str
    own_attention: str  # the model's own attention function, by its name in transformers
    exact: ExactSum | None = None  # sums the gradients if train.reduction is "exact"
    why_rows_alone: str | None = None  # why each pass holds only one row; None: several rows

    @property
    def is_sharded(self) -> bool:
        """Whether FSDP holds the model: each rank has some rows of every parameter."""
        return isinstance(self.loss_module, FSDPModule)

    @property
    def checkpoint_bytes(self) -> int:
        """The bytes of a checkpoint on disk, over all ranks. Tied tensors are counted once."""
        tensors = self.tensors()
        tied = tied_names(tensors)
        return sum(t.numel() * t.element_size() for n, t in tensors.items() if n not in tied)

    @property
    def rows_warning(self) -> str | None:
        """A warning if each pass of this model holds only one row; else None."""
        if self.why_rows_alone is None:
            return None
        if self.why_rows_alone == NOT_FINITE:
            return f"{NOT_FINITE}. One example in each pass, which is slower"
        return (
            "one example in each pass, which is slower: laid end to end in one pass, examples "
            f"would change each other in this model ({self.why_rows_alone})"
        )

    def reshard(self) -> None:
        """Free the parameters that FSDP has gathered.

        After a forward pass without a backward pass, FSDP keeps the parameters of the root.
        """
        if isinstance(self.loss_module, FSDPModule):
            self.loss_module.reshard()

    def statefuls(self) -> dict[str, Stateful]:
        """Everything that a checkpoint saves and a resume restores, by name.

        The learning rate, the order of the data and random states are not saved: they follow from
        step, epoch, seed and configuration.
        """
        self.reshard()
        return {
            "model": self.weights,
            "optimizer": NamedOptimizer(self.optimizer, self.weights.named),
            "scaler": self.scaler,
            "progress": self.progress,
        }

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors of `statefuls`, not copied. After filling them, call `weights.publish`."""
        return {
            f"{name}.{key}": value
            for name, stateful in self.statefuls().items()
            for key, value in stateful.state_dict().items()
            if isinstance(value, torch.Tensor)
        }

    def numbers(self) -> Numbers:
        """The values of `statefuls` that are not tensors. A Stateful without such values is left
        out.
        """
        found = {
            name: {k: v for k, v in one.state_dict().items() if not isinstance(v, torch.Tensor)}
            for name, one in self.statefuls().items()
        }
        return {name: values for name, values in found.items() if values}

    def load_numbers(self, numbers: Numbers) -> None:
        """Restore what `numbers` returned. Names that this state does not have are ignored."""
        statefuls = self.statefuls()
        for name in self.numbers().keys() & numbers.keys():
            statefuls[name].load_state_dict(statefuls[name].state_dict() | dict(numbers[name]))

    def autocast(self, device: torch.device) -> torch.autocast:
        """The autocast context. It is on for float16 and off for the other dtypes."""
        return torch.autocast(device.type, torch.float16, enabled=self.dtype == "float16")


def manifest_fields(numbers: Numbers) -> dict[str, Any]:
    """`TrainState.numbers` as fields of a CheckpointManifest."""
    others = {
        name: values for name, values in numbers.items() if name not in ("progress", "scaler")
    }
    return {**numbers["progress"], "scaler": numbers.get("scaler"), "numbers": others}


def numbers_in(manifest: CheckpointManifest) -> Numbers:
    """Read from a manifest the numbers that `manifest_fields` has written."""
    progress = {item.name: getattr(manifest, item.name) for item in fields(Progress)}
    scaler = {"scaler": manifest.scaler} if manifest.scaler else {}
    return {"progress": progress, **scaler, **manifest.numbers}
