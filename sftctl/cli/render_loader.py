"""The loader sweep as a table."""

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sftctl.metrics import LoaderResult

if TYPE_CHECKING:
    from sftctl.bench.loader import LoaderReport
    from sftctl.bench.machine import Machine

_SETTING = ("workers", "pin", "prefetch", "persistent")
_MEASURED = (
    "batches\n/s",
    "tokens\n/s",
    "spread\n",
    "first\nms",
    "p50\nms",
    "p99\nms",
    "RSS\nMB",
)


def loader_report(report: "LoaderReport") -> RenderableType:
    """Where and what was measured, a row a setting, and the verdict."""
    facts = Text(
        f"{report.store}\n"
        f"{report.num_examples:,} examples, {report.batch_size} a batch, to {report.device}\n"
        f"{_machine(report.machine)}\n"
    )
    table = Table(*_SETTING, box=None, pad_edge=False, collapse_padding=True)
    for name in _MEASURED:
        table.add_column(name, justify="right", no_wrap=True)
    for result in report.results:
        style = "bold" if result == report.recommended else None
        table.add_row(*_setting(result), *_numbers(result), style=style)
    lines = [
        *(f"failed: {', '.join(_named(r))}: {r.error}" for r in report.results if r.error),
        *(f"note: {note}" for note in report.notes),
        f"recommended: {report.why}",
    ]
    return Group(facts, table, Text("\n" + "\n".join(lines)))


def _machine(machine: "Machine") -> str:
    quota, shm = machine.cpu_quota_cores, machine.shm_free_bytes
    return ", ".join(
        [
            f"{machine.usable_cores} usable cores",
            "no CPU quota" if quota is None else f"CPU quota of {quota:g} cores",
            "no /dev/shm" if shm is None else f"{shm / 1e6:,.0f} MB free in /dev/shm",
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


def _named(result: LoaderResult) -> list[str]:
    return [f"{name} {value}" for name, value in zip(_SETTING, _setting(result), strict=True)]


def _numbers(result: LoaderResult) -> list[str]:
    if result.error is not None:
        return ["failed"]
    return [
        f"{result.batches_per_s:,.0f}",
        f"{result.tokens_per_s:,.0f}",
        f"{result.spread_ratio or 0:.0%}",
        *(f"{1e3 * (s or 0):.2f}" for s in (result.first_batch_s, result.wait_p50_s)),
        f"{1e3 * (result.wait_p99_s or 0):.2f}",
        f"{(result.rss_bytes or 0) / 1e6:,.0f}",
    ]


def _on(value: bool) -> str:
    return "on" if value else "off"
