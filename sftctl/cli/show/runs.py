"""The output of `sftctl runs`: a table of runs."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from sftctl.cli.show.fitting_table import FittingTable
from sftctl.cli.show.output import text_lines
from sftctl.runs.overview import RunLine, age_s
from sftctl.words import format_age, in_shell

_COLUMNS = (
    *("run", "status", "step", "loss", "validation", "best"),
    *("tok/s", "model", "data", "changed"),
)
_FIRST_TO_GO = ("tok/s", "data", "model", "changed", "loss", "best")
_STYLES = {"failed": "red", "damaged": "red", "killed": "yellow", "running": "green"}


def runs_table(folder: Path, lines: Sequence[RunLine]) -> RenderableType:
    """A table with one row for each run. Below it: losses of validation sets, and next commands."""
    if not lines:
        name = in_shell(f"{folder}/NAME")
        return text_lines([f"no runs in {folder}; `sftctl train --output-dir {name}` starts one"])
    table = FittingTable(*_COLUMNS, first_to_go=_FIRST_TO_GO, right=("step", "loss", "tok/s"))
    for line in lines:
        table.add_row(*_cells(line))
    sets = [f"{line.name}: {_sets(line)}" for line in lines if line.set_losses]
    todo = [
        f"{line.name}: {line.next or line.problem}{_goes_back(line)}"
        for line in lines
        if line.status != "running"
    ]
    return Group(table, *_part("validation sets", sets), *_part("next", todo))


def _part(title: str, lines: Sequence[str]) -> Iterator[RenderableType]:
    if lines:
        yield from (Text(), Text(title, style="bold"), text_lines(lines))


def _cells(line: RunLine) -> list[str | Text]:
    of = "" if line.total_steps is None else f"/{line.total_steps}"
    age = age_s(line)
    return [
        line.name,
        Text(line.status, style=_STYLES.get(line.status, "")),
        f"{line.step}{of}",
        "-" if line.loss is None else _loss(line.loss),
        _validation(line),
        _best(line),
        "-" if line.tokens_per_s is None else f"{line.tokens_per_s:,.0f}",
        line.model or "-",
        line.data or "-",
        "-" if age is None else format_age(age),
    ]


def _validation(line: RunLine) -> str:
    """The first and the last validation loss. If there is only one, it is shown once."""
    if line.validation_loss is None:
        return "-"
    first, last = _loss(line.first_validation_loss), _loss(line.validation_loss)
    return last if line.best_validation_loss is None else f"{first} -> {last}"


def _best(line: RunLine) -> str:
    """The best evaluation and its step. Without evaluations: the lowest loss of a step."""
    if line.best is not None and line.best_step is not None:
        name = "" if line.best_of == "validation loss" else f"{line.best_of} "
        return f"{name}{_loss(line.best)} at {line.best_step}"
    if line.lowest_loss is not None:
        return f"loss {_loss(line.lowest_loss)} at {line.lowest_loss_step}"
    return "-"


def _goes_back(line: RunLine) -> str:
    """The step from which a resume would continue, if this is not the last step."""
    if line.status in ("finished", "damaged") or line.step == (line.last_checkpoint or 0):
        return ""
    return f" (continues from step {line.last_checkpoint or 0})"


def _sets(line: RunLine) -> str:
    """The last loss of each validation set."""
    return ", ".join(f"{name} {_loss(loss)}" for name, loss in line.set_losses.items())


def _loss(value: float | None) -> str:
    return "?" if value is None or not math.isfinite(value) else f"{value:.4f}"
