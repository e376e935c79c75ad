"""Tables about tensors: the statistics of a checkpoint, and the changes between two checkpoints."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from sftctl.cli.show.fitting_table import FittingTable
from sftctl.cli.show.output import facts_table

if TYPE_CHECKING:
    from sftctl.inspection.diff import CheckpointDiff, TensorChange
    from sftctl.inspection.tensors.statistics import TensorStatistics

_BARS = "▁▂▃▄▅▆▇█"
_MOST_ROWS = 2000  # the longest table of tensors
_SHOWN = 20  # the longest table of changed tensors; --json has all


def statistics_table(statistics: "list[TensorStatistics]") -> FittingTable:
    """A table with one row for each tensor. A histogram from min to max is drawn as bars."""
    numbers_shown = ("norm", "mean", "std", "min", "max", "NaN", "Inf")
    table = FittingTable(
        *("name", "dtype", "shape", *numbers_shown, "min to max"),
        first_to_go=("min to max", "mean", "dtype", "min", "max", "std", "shape"),
        right=numbers_shown,
        title="tensors",
    )
    shown = [one for one in statistics if one.shape or not one.name.endswith(".step")]
    for one in shown[:_MOST_ROWS]:  # without the tensors `.step` of the optimizer
        numbers = (one.norm, one.mean, one.std, one.min, one.max)
        bad = [Text(_count(n), style="red" if n else "") for n in (one.num_nan, one.num_inf)]
        shape = "x".join(map(str, one.shape)) or "()"
        bars = one.error or _bars(one.histogram or ())
        table.add_row(one.name, one.dtype, shape, *map(_short, numbers), *bad, bars)
    if len(shown) > _MOST_ROWS:
        table.add_row(f"and {len(shown) - _MOST_ROWS:,} more, which --json shows")
    return table


def _bars(counts: tuple[int, ...]) -> str:
    """One character for each bin of a histogram. An empty bin is a blank."""
    top = max(counts, default=0)
    return "".join(_BARS[-(-c * (len(_BARS) - 1) // top)] if c else " " for c in counts)


def diff_report(diff: "CheckpointDiff") -> RenderableType:
    """All differences between two checkpoints. The tensors that changed most come first."""
    table = facts_table()
    table.add_row("a", f"{diff.a.path} ({diff.a.format})")
    table.add_row("b", f"{diff.b.path} ({diff.b.format})")
    rng = {True: "equal", False: "different", None: "not recorded in both"}[diff.rng_equal]
    table.add_row("randomness", rng)
    for name, tensors in (("weights", diff.tensors), ("optimizer", diff.optimizer)):
        table.add_row(name, _count_of(tensors))
    for name, only in (("a", diff.only_in_a), ("b", diff.only_in_b)):
        if only:
            more = f" and {len(only) - 3} more" if len(only) > 3 else ""
            table.add_row(f"only in {name}", ", ".join(only[:3]) + more)
    for name in diff.nan_appeared:
        table.add_row("NaN appeared", Text(name, style="red"))
    for title, changes in (("counter", diff.counters), ("config", diff.config)):
        for change in changes:
            key = "epoch (from 0)" if change.key == "epoch" and diff.a.is_ours else change.key
            table.add_row(title, f"{key}: {_shown(change.a)} -> {_shown(change.b)}")
    return Group(table, *_rankings(diff))


def _shown(value: object) -> str:
    """A value of a manifest as text. Floats have six significant digits."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _count_of(tensors: "list[TensorChange]") -> str:
    equal = sum(tensor.is_equal for tensor in tensors)
    return f"{len(tensors)} in both, {equal} equal, {len(tensors) - equal} different"


def _rankings(diff: "CheckpointDiff") -> Iterator[FittingTable]:
    for title, tensors in (("weights", diff.tensors), ("optimizer", diff.optimizer)):
        changed = [tensor for tensor in tensors if not tensor.is_equal]
        if not changed:
            continue
        shown = f", the first {_SHOWN} of {len(changed)}" if len(changed) > _SHOWN else ""
        numbers_shown = ("relative", "largest", "norm a", "norm b", "NaN a", "NaN b")
        table = FittingTable(
            *("name", *numbers_shown),
            first_to_go=("NaN a", "NaN b", "norm a", "norm b", "largest"),
            right=numbers_shown,
            title=f"{title} that changed{shown}",
        )
        for one in changed[:_SHOWN]:
            numbers = (one.relative_change, one.max_change, one.norm_a, one.norm_b)
            counts = (_count(one.num_nan_a), _count(one.num_nan_b))
            table.add_row(
                one.name, *([one.error] if one.error else [*map(_short, numbers), *counts])
            )
        yield table


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _count(value: Any) -> str:
    return "-" if value is None else f"{value:,}"
