"""The state of a torch optimizer as torch.save wrote it."""

from dataclasses import dataclass
from typing import Any

from sftctl.checkpoint.tensor_index import StoredTensor
from sftctl.inspection.pickles.torch_file import TorchFile
from sftctl.inspection.pickles.values import number, table
from sftctl.inspection.report import Report


@dataclass(frozen=True, slots=True)
class OptimizerFacts:
    """What the parameter groups say."""

    learning_rate: float | None = None  # of the first group


def take_optimizer(report: Report, found: TorchFile, prefix: str) -> OptimizerFacts:
    """Add an optimizer's tensors to the report; `prefix` is its place in the file's value."""
    value = found.value
    for key in filter(None, prefix.split(".")):
        value = table(value).get(key)
    before = f"{prefix}.state." if prefix else "state."
    report.tensors |= optimizer_tensors(found.tensors, before)
    return OptimizerFacts(learning_rate_of(value))


def optimizer_tensors(tensors: dict[str, StoredTensor], before: str) -> dict[str, StoredTensor]:
    """Those whose name begins so, as "optimizer.<parameter>.<moment>"."""
    return {
        f"optimizer.{name.removeprefix(before)}": tensor
        for name, tensor in tensors.items()
        if name.startswith(before)
    }


def learning_rate_of(state: Any) -> float | None:
    """The rate of an optimizer's first parameter group, as stored."""
    groups = table(state).get("param_groups")
    first = groups[0] if isinstance(groups, list) and groups else None
    rate = number(table(first).get("lr"))
    return None if rate is None else float(rate)
