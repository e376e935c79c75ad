"""The output of --dry-run: findings, size, learning rate, and where each setting comes from."""

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sftctl import environment
from sftctl.cli.show.output import facts_table
from sftctl.config.load import toml_value
from sftctl.words import counted, format_bytes, parameters_text

if TYPE_CHECKING:
    from sftctl.train.preflight.dry_run import RunPlan
    from sftctl.train.preflight.findings import Finding
    from sftctl.train.preflight.memory import MemoryEstimate

_ROWS = 5
_STYLES = {"ok": "green", "warning": "yellow", "error": "red"}


def run_plan(plan: "RunPlan") -> RenderableType:
    """All findings, size and time of the run, the learning rate, and settings without defaults."""
    return Group(
        _findings(plan.findings),
        Text(""),
        _size(plan),
        Text("\nlearning rate", style="bold"),
        Text("\n".join(plot(plan.learning_rates, _dot()))),
        Text("\nconfiguration: key, value and origin, without defaults", style="bold"),
        _settings(plan),
        Text("`sftctl train --print-config` shows every key", style="dim"),
    )


def _dot() -> str:
    return "•" if environment.shows_unicode(sys.stdout) else "*"


def plot(points: Sequence[tuple[int, float]], dot: str) -> Iterator[str]:
    """Draw a curve of positive values as lines of text. The largest value is at the top."""
    top = max(value for _, value in points) or 1.0
    heights = [round(value / top * (_ROWS - 1)) for _, value in points]
    for row in range(_ROWS - 1, -1, -1):
        label = f"{top * row / (_ROWS - 1):9.2e}"
        yield f"{label} |{''.join(dot if height == row else ' ' for height in heights)}".rstrip()
    last = f"step {points[-1][0]}"
    yield f"{'':9} +{'-' * len(points)}"
    yield f"{'':11}1{last:>{max(len(last) + 1, len(points) - 1)}}"


def _size(plan: "RunPlan") -> Table:
    table, train = facts_table(), plan.config["train"]
    table.add_row("run", plan.run_dir)
    parameters = parameters_text(plan.num_parameters, plan.num_trained)
    table.add_row("model", f"{plan.config['model']['name']}, {parameters}")
    table.add_row(
        "data",
        f"{counted(plan.num_examples, 'example')}, {plan.num_tokens:,} tokens, "
        f"{plan.num_target_tokens:,} target tokens; "
        f"{counted(plan.num_validation_examples, 'example')} for validation",
    )
    for source in plan.sources:
        table.add_row(
            f"source {source.name}",
            f"weight {source.weight:g} of {counted(source.num_examples, 'example')}: the run "
            f"trains {source.planned_examples:,} examples, {source.planned_tokens:,} tokens, "
            f"{source.planned_target_tokens:,} target tokens",
        )
    table.add_row(
        "steps",
        f"{plan.total_steps}: {plan.steps_per_epoch} per epoch, {train['batch_size']} x "
        f"{train['accumulation_steps']} examples each",
    )
    if plan.time_s is not None:
        per_step = plan.time_s / plan.total_steps
        table.add_row("time", f"about {roughly(plan.time_s)} here ({per_step:.2g} s a step)")
    table.add_row("memory", _memory(plan.memory))
    table.add_row("checkpoint", f"about {format_bytes(plan.checkpoint_bytes)}")
    return table


def roughly(seconds: float) -> str:
    """A time as a rough estimate, such as `4 minutes`."""
    for length, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= 1.5 * length:
            return counted(round(seconds / length), unit)
    return counted(max(1, round(seconds)), "second")


def _memory(memory: "MemoryEstimate") -> str:
    parts = {
        "weights": memory.weights_bytes,
        "gradients": memory.gradients_bytes,
        "optimizer": memory.optimizer_bytes,
        "activations": memory.activations_bytes,
        "working memory": memory.working_bytes,
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
    table = facts_table()
    for key, origin in plan.origins.items():
        if origin == "default":
            continue
        section, name = key.split(".")
        value = plan.config[section].get(name)
        lines = [] if value is None else toml_value(value).splitlines()
        shown = "unset" if value is None else " ".join(line.strip() for line in lines)
        table.add_row(
            key, Text(shown), Text(origin, style="dim" if origin.startswith("default") else "bold")
        )
    return table
