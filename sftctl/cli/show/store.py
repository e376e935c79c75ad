"""The output of prepare-data: counts of rows and examples, shown examples, and the progress."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from sftctl.cli import streams
from sftctl.cli.show.output import facts_table
from sftctl.data.prepare.notes import dropped_rows, many_dropped, shortened, store_notes
from sftctl.tracking import status
from sftctl.words import counted, format_bytes, format_duration, printable

if TYPE_CHECKING:
    from sftctl.data.manifest import Audit, StoreManifest
    from sftctl.data.prepare.builder import Progress
    from sftctl.data.prepare.prepare import PreparedStore

_EVERY_S = 0.2  # how often progress is shown on a terminal
_EVERY_S_PIPED = 30.0
_MOST_FILES = 100


def prepared_store(prepared: "PreparedStore", path: Path) -> RenderableType:
    """A table: the size of the store, and how many rows were kept, truncated, split or dropped."""
    manifest, table = prepared.manifest, facts_table()
    table.add_row("store", f"{path}{' (reused: nothing changed)' if prepared.is_reused else ''}")
    if prepared.replaced:
        table.add_row("rebuilt", prepared.replaced)
    table.add_row("rows read", f"{manifest.rows_read:,}")
    table.add_row("rows kept", f"{manifest.rows_kept:,}")
    for reason, count in (("truncated", manifest.rows_truncated), ("split", manifest.rows_split)):
        if count:
            table.add_row(f"kept, {reason}", f"{count:,}{_tokens_lost(manifest, reason)}")
    for reason, count in manifest.rows_dropped.items():
        first = manifest.first_rows.get(reason)
        where = f", first: {first}" if first is not None else ""
        table.add_row(f"dropped: {reason}", f"{count:,}{_tokens_lost(manifest, reason)}{where}")
    if manifest.has_notes:
        table.add_row("ledger", str(path / "ledger.jsonl"))
    if dropped := many_dropped(manifest):
        table.add_row("warning", Text(dropped, style="yellow"))
    if manifest.rows_duplicated:
        rows = f"{manifest.rows_duplicated:,} of {counted(manifest.rows_kept, 'row')}"
        table.add_row("duplicates", f"{rows} (kept)")
    for subject, what in store_notes(manifest):
        table.add_row(subject, Text(what, style="yellow"))
    _add_files(table, manifest)
    for name, split in manifest.splits.items():
        table.add_row(
            name,
            f"{counted(split.num_examples, 'example')}, {split.num_tokens:,} tokens, "
            f"{split.num_target_tokens:,} target tokens",
        )
    q = manifest.length_quantiles
    table.add_row("lengths", f"median {q['p50']}, 90% {q['p90']}, longest {q['max']}")
    table.add_row("tokenizer", manifest.tokenizer)
    table.add_row("engine", _engine(manifest))
    table.add_row("masks", _audit(manifest.audit))
    return table


def _add_files(table: Table, manifest: "StoreManifest") -> None:
    """Add the rows of each file, the columns that were not read, and files with mixed formats."""
    for source in manifest.sources[:_MOST_FILES]:
        dropped = f", {dropped_rows(source.rows_dropped)}" if source.rows_dropped else ""
        name = f"{source.name} = " if source.name else ""
        table.add_row("file", f"{name}{source.file}: {counted(source.rows, 'row')}{dropped}")
    if len(manifest.sources) > _MOST_FILES:
        table.add_row("", f"and {len(manifest.sources) - _MOST_FILES} more files")
    for names, files in _columns_left(manifest).items():
        table.add_row("columns not read", f"{shortened([*names])}{files}")
    for source in manifest.sources:
        if len(source.shapes) > 1:
            shapes = ", ".join(f"{name} {rows:,}" for name, rows in source.shapes.items())
            table.add_row("mixed formats", f"{source.file}: {shapes}")


def _columns_left(manifest: "StoreManifest") -> dict[tuple[str, ...], str]:
    """Columns that were not read -> a text that names the files with these columns."""
    files: dict[tuple[str, ...], list[str]] = {}
    for source in manifest.sources:
        if source.columns_left:
            files.setdefault(tuple(source.columns_left), []).append(source.file)
    one = len(manifest.sources) == 1
    return {names: "" if one else f" (in {shortened(found)})" for names, found in files.items()}


def _engine(manifest: "StoreManifest") -> str:
    if not manifest.engine_rows_checked:
        return f"{manifest.engine} ({manifest.engine_reason})"
    rows = counted(manifest.engine_rows_checked, "row")
    return f"{manifest.engine}, checked against Hugging Face tokenizers on {rows} of this data"


def _audit(audit: "Audit") -> Text:
    if not audit.passed:
        return Text(f"failed: {'; '.join(audit.problems())}", style="red")
    cut = f"; {audit.turns_cut:,} are truncated at the maximum length" if audit.turns_cut else ""
    if audit.targets_weighted:
        tokens = counted(audit.targets_weighted, "target token has", "target tokens have")
        cut += f"; {tokens} a weight that is not 1"
    return Text(
        f"ok: every example has target tokens; {audit.turns - audit.turns_cut:,} of "
        f"{counted(audit.turns, 'trained turn')} end with a trained end-of-turn token{cut}"
    )


def _tokens_lost(manifest: "StoreManifest", reason: str) -> str:
    tokens = manifest.tokens_lost.get(reason, 0)
    return f", {counted(tokens, 'token')} lost" if tokens else ""


def show_examples(examples: list[list[tuple[str, float]]]) -> RenderableType:
    """Show examples as text. Trained tokens are green, between « and ». Other text is dim.

    A weight that is not 1 is written after the tokens: «text»×0.5.
    """
    text = Text()
    for number, runs in enumerate(examples):
        text.append(f"--- example {number}\n", style="bold")
        for part, weight in runs:
            shown = _shown_part(part)
            times = f"×{weight:g}" if weight not in (0, 1) else ""
            text.append(f"«{shown}»{times}" if weight else shown, "green" if weight else "dim")
        text.append("\n")
    return text


def _shown_part(part: str) -> str:
    """A part of an example. A line that looks like the title of an example is escaped."""
    return printable(part, keep="\n").replace("\n--- example", "\n\\--- example")


@contextmanager
def preparation_progress() -> Iterator[Callable[["Progress"], None]]:
    """Show the rate and the time left. Yields the progress function.

    On a terminal, one line is rewritten, and erased at the end. Otherwise a line is written every
    30 seconds.
    """
    on_terminal = sys.stderr.isatty()
    started = shown_at = time.monotonic()

    def on_progress(progress: "Progress") -> None:
        nonlocal shown_at
        now = time.monotonic()
        if now - shown_at < (_EVERY_S if on_terminal else _EVERY_S_PIPED):
            return
        shown_at = now
        status.doing("")
        start, end = ("\r", "\x1b[K") if on_terminal else ("", "\n")
        text = progress_line(progress, now - started)
        streams.tell(text, end, start)

    try:
        yield on_progress
    finally:
        if on_terminal:
            streams.tell("", end="\x1b[K", start="\r")


def progress_line(progress: "Progress", elapsed_s: float) -> str:
    """The progress as text: `12,000 rows, 9,100,000 tokens, 21.3 MB/s, 25%, 0:14 left`."""
    rate = progress.num_bytes / max(elapsed_s, 1e-9)
    line = f"{progress.num_rows:,} rows, {progress.num_tokens:,} tokens, {format_bytes(rate)}/s"
    if progress.total_bytes and rate:
        left_s = max(0, progress.total_bytes - progress.num_bytes) / rate
        share = min(1.0, progress.num_bytes / progress.total_bytes)
        line += f", {share:.0%}, {format_duration(left_s)} left"
    return line
