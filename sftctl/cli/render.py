"""Values into text and tables; pure but for `emit` and `show`, which print."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from sftctl import jsonio
from sftctl.metrics import RunSummary

if TYPE_CHECKING:
    from sftctl.data.manifest import StoreManifest
    from sftctl.data.prepare import PreparedStore
    from sftctl.train.preflight import RunPlan


def emit(value: object, renderable: RenderableType, *, as_json: bool) -> None:
    """One JSON document, or the text for people, on stdout."""
    if as_json:
        sys.stdout.buffer.write(jsonio.dump_pretty(value))
        sys.stdout.flush()
    else:
        show(renderable)


def show(renderable: RenderableType) -> None:
    """Print for people, on stdout; in a pipe no line is wrapped."""
    width = None if sys.stdout.isatty() else 160
    console = Console(highlight=False, width=width)
    console.print(renderable)


def run_summary(summary: RunSummary) -> RenderableType:
    """How a run ended, and what to type next."""
    where = summary.run_dir
    lines = {
        "finished": f"finished: step {summary.step} of {summary.total_steps}",
        "stopped": f"stopped and saved: step {summary.step} of {summary.total_steps}",
        "nothing_to_do": f"finished already: step {summary.step} of {summary.total_steps}",
    }
    text = [lines[summary.status]]
    if summary.validation_loss is not None and summary.first_validation_loss is not None:
        first, last = summary.first_validation_loss, summary.validation_loss
        text.append(f"validation loss {first:.4f} -> {last:.4f} (x {last / first:.2f})")
    if summary.wall_time_s > 0:
        rate = summary.num_tokens / summary.wall_time_s
        text.append(
            f"{summary.num_tokens} tokens in {summary.wall_time_s:.1f} s ({rate:.0f} a second)"
        )
    if summary.status == "stopped":
        text.append(f"go on:    sftctl resume {where}")
    else:
        text.append(f"try it:   sftctl chat {where}")
        text.append(f"take it:  sftctl export {where} --output DIR")
    text.append(f"look in:  sftctl inspect-ckpt {where}")
    return Text("\n".join(text))


def run_plan(plan: "RunPlan") -> RenderableType:
    """The size of a run that was not started."""
    table = facts_table()
    config = plan.config
    table.add_row("model", f"{config['model']['name']}, {plan.num_parameters:,} parameters")
    table.add_row(
        "data",
        f"{plan.num_examples:,} examples, {plan.num_tokens:,} tokens, {plan.num_target_tokens:,} "
        f"of them targets; {plan.num_validation_examples:,} examples for validation",
    )
    train = config["train"]
    table.add_row(
        "steps",
        f"{plan.steps_per_epoch} an epoch of {train['batch_size']} x "
        f"{train['accumulation_steps']} examples, {plan.total_steps} in all",
    )
    table.add_row(
        "learning rate", f"{plan.first_learning_rate:.3g} down to {plan.last_learning_rate:.3g}"
    )
    table.add_row("a checkpoint", f"about {megabytes(plan.checkpoint_bytes)}")
    return table


def prepared_store(prepared: "PreparedStore", path: Path) -> RenderableType:
    """What became of every row."""
    manifest, table = prepared.manifest, facts_table()
    table.add_row("store", f"{path}{' (reused: nothing changed)' if prepared.is_reused else ''}")
    if prepared.replaced:
        table.add_row("made anew", prepared.replaced)
    table.add_row("rows read", f"{manifest.rows_read:,}")
    kept = f"{manifest.rows_kept:,} ({manifest.rows_truncated:,} truncated"
    table.add_row("rows kept", f"{kept}{_tokens_lost(manifest, 'truncated')})")
    for reason, count in manifest.rows_dropped.items():
        table.add_row(f"dropped: {reason}", f"{count:,}{_tokens_lost(manifest, reason)}")
    if manifest.rows_duplicated:
        table.add_row("duplicates", f"{manifest.rows_duplicated:,} rows say what another says")
    for source in manifest.sources:
        if len(source.shapes) > 1:
            shapes = ", ".join(f"{name} {rows:,}" for name, rows in source.shapes.items())
            table.add_row("mixed shapes", f"{source.file}: {shapes}")
    for name, split in manifest.splits.items():
        table.add_row(
            name,
            f"{split.num_examples:,} examples, {split.num_tokens:,} tokens, "
            f"{split.num_target_tokens:,} of them targets",
        )
    q = manifest.length_quantiles
    table.add_row("lengths", f"median {q['p50']}, 90% {q['p90']}, longest {q['max']}")
    table.add_row("tokenizer", f"{manifest.tokenizer} (engine {manifest.engine})")
    return table


def _tokens_lost(manifest: "StoreManifest", reason: str) -> str:
    tokens = manifest.tokens_lost.get(reason, 0)
    return f", {tokens:,} tokens lost" if tokens else ""


def show_examples(examples: list[list[tuple[str, bool]]]) -> RenderableType:
    """Conversations with the trained tokens in green between guillemets, the rest dim."""
    text = Text()
    for number, runs in enumerate(examples):
        text.append(f"--- example {number}\n", style="bold")
        for part, is_trained in runs:
            text.append(f"«{part}»" if is_trained else part, "green" if is_trained else "dim")
        text.append("\n")
    return text


def preparation_progress() -> Callable[[int, int], None]:
    """Rows so far, rewritten in place on a terminal; nothing in a pipe."""
    on_terminal = sys.stderr.isatty()

    def on_progress(rows: int, tokens: int) -> None:
        if on_terminal:
            print(f"\r{rows:,} rows, {tokens:,} tokens", end="", file=sys.stderr, flush=True)

    return on_progress


def facts_table() -> Table:
    """Two columns: what, and how much."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    return table


def megabytes(num_bytes: int) -> str:
    """In millions, as a disk counts."""
    return f"{num_bytes / 1e6:,.1f} MB"
