"""The output of bench-loader: a table that grows during the measurement, and a coloured table."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from sftctl.bench.result import LoaderResult
from sftctl.cli.show.fitting_table import FittingTable
from sftctl.cli.show.output import text_lines
from sftctl.tracking import status
from sftctl.words import format_bytes

if TYPE_CHECKING:
    from sftctl.bench.sweep import LoaderReport
    from sftctl.machine import Machine

_SETTING = ("workers", "pin", "prefetch", "persistent")

# Title, field, divisor, format, and whether a larger number is better (None: no colour).
_MEASURED: tuple[tuple[str, str, float, str, bool | None], ...] = (
    ("batches\n/s", "batches_per_s", 1, "{:,.0f}", True),
    ("tokens\n/s", "tokens_per_s", 1, "{:,.0f}", True),
    ("spread\n", "spread_ratio", 1, "{:.0%}", None),
    ("first\nms", "first_batch_s", 1e-3, "{:.1f}", False),
    ("p50\nms", "wait_p50_s", 1e-3, "{:.2f}", False),
    ("p99\nms", "wait_p99_s", 1e-3, "{:.2f}", False),
    ("in step\nms", "step_wait_s", 1e-3, "{:.2f}", False),
    ("RSS\nMB", "rss_bytes", 1e6, "{:,.0f}", False),
    ("PSS\nMB", "pss_bytes", 1e6, "{:,.0f}", False),
    ("shm\nMB", "shm_bytes", 1e6, "{:,.1f}", None),
    ("files\n", "open_files", 1, "{:,.0f}", None),
)
_FIRST_TO_GO = (
    *("files\n", "shm\nMB", "RSS\nMB", "persistent", "p50\nms", "spread\n", "batches\n/s"),
    *("first\nms", "pin", "prefetch", "p99\nms", "PSS\nMB"),
)
_HEAT = ("black on green", "black on dark_sea_green", "black on khaki1", "black on light_salmon1")


@contextmanager
def live_table(*, wanted: bool) -> Iterator[Callable[[Sequence[LoaderResult], int, int], None]]:
    """Show a table of the results so far, if stderr is a terminal. Yields the progress function."""
    console = Console(file=sys.stderr, highlight=False)
    if not (wanted and console.is_terminal):
        yield lambda results, done, total: None
        return
    with Live(console=console, transient=True, auto_refresh=False) as live:

        def on_progress(results: Sequence[LoaderResult], done: int, total: int) -> None:
            status.doing("")  # the table shows the progress
            text = Text(f"\n{done} of {total} rounds; medians so far")
            live.update(Group(_table(results, None), text), refresh=True)

        yield on_progress


def loader_report(report: "LoaderReport") -> RenderableType:
    """The recommendation, facts about data and machine, and a table with a row for each setting."""
    ranks = "" if report.num_ranks == 1 else f", {report.num_ranks} ranks at once"
    source = "" if report.source == "store" else ", tokenized while loading"
    facts = [
        f"{report.store}{source}",
        f"{report.num_examples:,} examples, {report.batch_size} per batch, "
        f"to {report.device}{ranks}",
        _machine(report.machine),
    ]
    if report.step_time_s is not None:
        facts.append(f"a step takes {report.step_time_s:.3g} s ({report.step_time_source})")
    lines = [
        *(_failure(result) for result in report.results if result.error),
        *(f"note: {note}" for note in report.notes),
    ]
    if report.step_time_s is None:
        lines.append(
            "recommended by speed alone; --run or --model also considers the model's step time"
        )
    table = _table(report.results, report.recommended)
    verdict = text_lines([f"recommended: {report.why}", "", *facts, ""])
    return Group(verdict, table, *([text_lines(["", *lines])] if lines else []))


def _table(results: Sequence[LoaderResult], chosen: LoaderResult | None) -> FittingTable:
    shown = [
        column
        for column in _MEASURED
        if column[1] != "step_wait_s" or any(r.step_wait_s is not None for r in results)
    ]
    names = [name for name, *_ in shown]
    table = FittingTable(*_SETTING, *names, first_to_go=_FIRST_TO_GO, right=names)
    for result in results:
        cells = [_cell(result, results, *column[1:]) for column in shown]
        if result.error is not None:
            cells = [Text("skipped" if result.error.startswith("skipped") else "failed")]
        table.add_row(*_setting(result), *cells, style="bold" if result == chosen else None)
    return table


def _cell(
    result: LoaderResult,
    results: Sequence[LoaderResult],
    field: str,
    unit: float,
    form: str,
    more_is_better: bool | None,
) -> Text:
    """A cell with a number. The colour shows how much worse it is than the best of its column."""
    value: Any = getattr(result, field)
    if value is None:
        return Text("")
    text = form.format(value / unit)
    if more_is_better is None or len(results) < 2:
        return Text(text)
    values = [v for r in results if r.error is None and (v := getattr(r, field)) is not None]
    times_worse = max(values) / value if more_is_better else value / max(min(values), 1e-12)
    heat = sum(times_worse > limit for limit in (1.1, 1.5, 3.0))
    return Text(text, style=_HEAT[heat])


def _failure(result: LoaderResult) -> str:
    named = ", ".join(f"{n} {v}" for n, v in zip(_SETTING, _setting(result), strict=True))
    error = result.error or ""
    return f"{named}: {error}" if error.startswith("skipped") else f"failed: {named}: {error}"


def _machine(machine: "Machine") -> str:
    quota, shm, ram = machine.cpu_quota_cores, machine.shm_free_bytes, machine.ram_free_bytes
    return ", ".join(
        [
            f"{machine.usable_cores} usable cores",
            "no CPU quota" if quota is None else f"CPU quota of {quota:g} cores",
            "memory unknown" if ram is None else f"{format_bytes(ram)} of memory free",
            "no /dev/shm" if shm is None else f"{format_bytes(shm)} free in /dev/shm",
            f"{machine.open_file_limit:,} open files",
        ]
    )


def _setting(result: LoaderResult) -> tuple[str, ...]:
    if result.num_workers == 0:
        return "0", _on(result.pin_memory), "-", "-"
    return (
        str(result.num_workers),
        _on(result.pin_memory),
        str(result.prefetch_factor),
        _on(result.persistent_workers),
    )


def _on(value: bool) -> str:
    return "on" if value else "off"
