"""The runs of a folder, as a table."""

import math
from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from sftctl.cli.show.output import SafeTable, stacked, text_lines
from sftctl.runs.overview import RunLine, age_s
from sftctl.words import format_age

_COLUMNS = ("run", "status", "step", "loss", "validation", "tok/s", "model", "data", "changed")
_STYLES = {"failed": "red", "damaged": "red", "killed": "yellow", "running": "green"}


def runs_table(folder: Path, lines: Sequence[RunLine]) -> RenderableType:
    """One row for each run, and below the table what to type next."""
    if not lines:
        return text_lines([f"no runs in {folder}; `sftctl train --output-dir {folder}/NAME` adds"])
    table = SafeTable(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in _COLUMNS:
        table.add_column(column, overflow="fold", no_wrap=column in ("status", "step", "tok/s"))
    for line in lines:
        table.add_row(*_cells(line))
    todo = [
        f"{line.name}: {line.next or line.problem}" for line in lines if line.status != "running"
    ]
    return Group(table, Text(), Text("next", style="bold"), text_lines(todo)) if todo else table


def _cells(line: RunLine) -> list[RenderableType]:
    of = "" if line.total_steps is None else f"/{line.total_steps}"
    age = age_s(line)
    return [
        line.name,
        Text(line.status, style=_STYLES.get(line.status, "")),
        f"{line.step}{of}",
        _span(line.first_loss, line.loss),
        _validation(line),
        "-" if line.tokens_per_s is None else f"{line.tokens_per_s:,.0f}",
        line.model or "-",
        line.data or "-",
        "-" if age is None else format_age(age),
    ]


def _span(first: float | None, last: float | None) -> str:
    return "-" if last is None else f"{_loss(first)} -> {_loss(last)}"


def _validation(line: RunLine) -> RenderableType:
    """The first and last loss and the best step; the last loss of each set on a line of its own."""
    of_all = _span(line.first_validation_loss, line.validation_loss)
    sets = [f"{name} {_loss(loss)}" for name, loss in line.set_losses.items()]
    return stacked(text_lines([*_with_best(of_all, line), *sets]))  # a table escapes line breaks


def _with_best(of_all: str, line: RunLine) -> list[str]:
    """The best step after the loss, or below it if something else than the loss chose it."""
    if line.best is None or line.best_step is None:
        return [of_all]
    if line.best_of != "validation loss":
        return [of_all, f"best {line.best_of} {_loss(line.best)} at {line.best_step}"]
    is_last = line.best == line.validation_loss
    return [of_all if is_last else f"{of_all}, best {_loss(line.best)} at {line.best_step}"]


def _loss(value: float | None) -> str:
    return "?" if value is None or not math.isfinite(value) else f"{value:.4f}"
