"""What --dry-run shows: the run's size, learning rate, findings, and each setting's origin."""

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sftctl.cli.show.output import facts_table
from sftctl.config.load import toml_value
from sftctl.words import counted, format_bytes

if TYPE_CHECKING:
    from sftctl.train.preflight.dry_run import RunPlan
    from sftctl.train.preflight.findings import Finding
    from sftctl.train.preflight.memory import MemoryEstimate

_ROWS = 5
_STYLES = {"ok": "green", "warning": "yellow", "error": "red"}


def run_plan(plan: "RunPlan") -> RenderableType:
    """Everything that `--dry-run` shows."""
    return Group(
        _size(plan),
        Text("\nlearning rate", style="bold"),
        Text("\n".join(plot(plan.learning_rates, "•" if _stdout_is_unicode() else "*"))),
        Text("\nchecks", style="bold"),
        _findings(plan.findings),
        Text("\nconfiguration: key, value and origin", style="bold"),
        _settings(plan),
    )


def plot(points: Sequence[tuple[int, float]], dot: str) -> Iterator[str]:
    """A curve of positive values as lines of text, the largest value at the top."""
    top = max(value for _, value in points) or 1.0
    heights = [round(value / top * (_ROWS - 1)) for _, value in points]
    for row in range(_ROWS - 1, -1, -1):
        label = f"{top * row / (_ROWS - 1):9.2e}"
        yield f"{label} |{''.join(dot if height == row else ' ' for height in heights)}".rstrip()
    last = f"step {points[-1][0]}"
    yield f"{'':9} +{'-' * len(points)}"
    yield f"{'':11}1{last:>{max(len(last) + 1, len(points) - 1)}}"


def _stdout_is_unicode() -> bool:
    return (sys.stdout.encoding or "ascii").lower().startswith("utf")


def _size(plan: "RunPlan") -> Table:
    table, train = facts_table(), plan.config["train"]
    table.add_row("run", plan.run_dir)
    table.add_row("model", f"{plan.config['model']['name']}, {plan.num_parameters:,} parameters")
    table.add_row(
        "data",
        f"{counted(plan.num_examples, 'example')}, {plan.num_tokens:,} tokens, "
        f"{plan.num_target_tokens:,} target tokens; "
        f"{counted(plan.num_validation_examples, 'example')} for validation",
    )
    table.add_row(
        "steps",
        f"{plan.total_steps}: {plan.steps_per_epoch} per epoch, {train['batch_size']} x "
        f"{train['accumulation_steps']} examples each",
    )
    table.add_row("memory", _memory(plan.memory))
    table.add_row("checkpoint", f"about {format_bytes(plan.checkpoint_bytes)}")
    return table


def _memory(memory: "MemoryEstimate") -> str:
    parts = {
        "weights": memory.weights_bytes,
        "gradients": memory.gradients_bytes,
        "optimizer": memory.optimizer_bytes,
        "activations": memory.activations_bytes,
        "copy while saving": memory.save_copy_bytes,
        "process": memory.process_bytes,
    }
    shown = (f"{name} {format_bytes(size)}" for name, size in parts.items() if size)
    return f"about {format_bytes(memory.total_bytes)} per rank: {', '.join(shown)}"


def _findings(findings: "Sequence[Finding]") -> Table:
    table = facts_table()
    for finding in findings:
        fix = f"; {finding.fix}" if finding.fix else ""
        level = Text(finding.level, style=_STYLES[finding.level])
        table.add_row(level, Text(f"{finding.subject}: {finding.what}{fix}"))
    return table


def _settings(plan: "RunPlan") -> Table:
    table = Table.grid(padding=(0, 2))
    for key, origin in plan.origins.items():
        section, name = key.split(".")
        value = plan.config[section].get(name)
        shown = "unset" if value is None else toml_value(value)
        table.add_row(
            key, Text(shown), Text(origin, style="dim" if origin == "default" else "bold")
        )
    return table
