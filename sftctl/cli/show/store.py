"""What prepare-data shows: how many rows were kept or dropped, masked examples, progress."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from sftctl.cli import streams
from sftctl.cli.show.output import facts_table
from sftctl.words import counted, format_bytes, format_duration

if TYPE_CHECKING:
    from sftctl.data.manifest import Audit, StoreManifest
    from sftctl.data.prepare.builder import Progress
    from sftctl.data.prepare.prepare import PreparedStore

_EVERY_S = 0.2  # on a terminal
_EVERY_S_PIPED = 30.0


def prepared_store(prepared: "PreparedStore", path: Path) -> RenderableType:
    """What the store holds, and how many rows were kept, truncated, split and dropped."""
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
        table.add_row(f"dropped: {reason}", f"{count:,}{_tokens_lost(manifest, reason)}")
    if manifest.rows_duplicated:
        rows = f"{manifest.rows_duplicated:,} of {counted(manifest.rows_kept, 'row')}"
        table.add_row("duplicates", f"{rows} (kept)")
    for source in manifest.sources:
        if len(source.shapes) > 1:
            shapes = ", ".join(f"{name} {rows:,}" for name, rows in source.shapes.items())
            table.add_row("mixed formats", f"{source.file}: {shapes}")
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


def _engine(manifest: "StoreManifest") -> str:
    if not manifest.engine_rows_checked:
        return f"{manifest.engine} ({manifest.engine_reason})"
    rows = counted(manifest.engine_rows_checked, "row")
    return f"{manifest.engine}, checked against Hugging Face tokenizers on {rows} of this data"


def _audit(audit: "Audit") -> Text:
    if not audit.passed:
        return Text(f"failed: {'; '.join(audit.problems())}", style="red")
    cut = f"; {audit.turns_cut:,} are truncated at the maximum length" if audit.turns_cut else ""
    return Text(
        f"ok: every example has target tokens; {audit.turns - audit.turns_cut:,} of "
        f"{counted(audit.turns, 'trained turn')} end with a trained end-of-turn token{cut}"
    )


def _tokens_lost(manifest: "StoreManifest", reason: str) -> str:
    tokens = manifest.tokens_lost.get(reason, 0)
    return f", {counted(tokens, 'token')} lost" if tokens else ""


def show_examples(examples: list[list[tuple[str, bool]]]) -> RenderableType:
    """Conversations; the trained tokens are green and between « and », the rest is dim."""
    text = Text()
    for number, runs in enumerate(examples):
        text.append(f"--- example {number}\n", style="bold")
        for part, is_trained in runs:
            text.append(f"«{part}»" if is_trained else part, "green" if is_trained else "dim")
        text.append("\n")
    return text


@contextmanager
def preparation_progress() -> Iterator[Callable[["Progress"], None]]:
    """Show rate and time left: one line rewritten in place on a terminal, else a line per 30 s.

    On a terminal the line is erased at the end, because the result or an error is printed there.
    """
    on_terminal = sys.stderr.isatty()
    started = shown_at = time.monotonic()

    def on_progress(progress: "Progress") -> None:
        nonlocal shown_at
        now = time.monotonic()
        if now - shown_at < (_EVERY_S if on_terminal else _EVERY_S_PIPED):
            return
        shown_at = now
        start, end = ("\r", "\x1b[K") if on_terminal else ("", "\n")
        text = progress_line(progress, now - started)
        streams.tell(f"{start}{text}", end)

    try:
        yield on_progress
    finally:
        if on_terminal:
            streams.tell("\r\x1b[K", end="")


def progress_line(progress: "Progress", elapsed_s: float) -> str:
    """`12,000 rows, 9,100,000 tokens, 21.3 MB/s, 25%, 0:14 left`."""
    rate = progress.num_bytes / max(elapsed_s, 1e-9)
    line = f"{progress.num_rows:,} rows, {progress.num_tokens:,} tokens, {format_bytes(rate)}/s"
    if progress.total_bytes and rate:
        left_s = max(0, progress.total_bytes - progress.num_bytes) / rate
        share = min(1.0, progress.num_bytes / progress.total_bytes)
        line += f", {share:.0%}, {format_duration(left_s)} left"
    return line
