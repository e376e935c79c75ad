"""The output of `sftctl init`: facts about the data, and the two commands to type next."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from sftctl.cli.show.dry_run import roughly
from sftctl.cli.show.output import facts_table, text_lines
from sftctl.data.prepare.notes import dropped_rows, many_dropped
from sftctl.words import counted, format_bytes, in_shell

if TYPE_CHECKING:
    from sftctl.train.preflight.look import Look


def found_in(look: "Look", output: Path) -> RenderableType:
    """A table of facts about the data and the run, and the commands to type next."""
    table, manifest, plan = facts_table(), look.manifest, look.plan
    dropped = f"; {dropped_rows(manifest.rows_dropped)}" if manifest.rows_dropped else ""
    rows = f"{manifest.rows_kept:,} of {counted(manifest.rows_read, 'row')} can be used{dropped}"
    table.add_row("rows", Text(rows, style="yellow" if many_dropped(manifest) else ""))
    table.add_row("shapes", look.shapes)
    scripts = ", ".join(f"{name} {share:.0%}" for name, share in look.scripts.items())
    table.add_row("letters", scripts or "none")
    table.add_row("tools", look.tools)
    q = manifest.length_quantiles
    table.add_row("lengths", f"median {q['p50']:,}, 90% {q['p90']:,}, longest {q['max']:,} tokens")
    config = look.config
    cut = f"{look.cut_ratio:.1%} of the examples are cut"
    table.add_row("max_seq_len", f"{config.data.max_seq_len:,}: {cut}")
    table.add_row("model", f"{config.model.name}, {plan.num_parameters:,} parameters")
    steps = f"{plan.total_steps:,} in {counted(config.train.epochs, 'epoch')}"
    table.add_row("steps", f"{steps}, {counted(config.train.batch_size, 'example')} each")
    table.add_row("memory", f"about {format_bytes(plan.memory.total_bytes)}")
    if plan.time_s is not None:
        table.add_row("time", f"about {roughly(plan.time_s)} here")
    for finding in plan.findings:
        if finding.level != "ok":
            style = "red" if finding.level == "error" else "yellow"
            table.add_row(finding.level, Text(str(finding), style=style))
    file = in_shell(output)
    commands = [
        "",
        f"wrote {output}; next:",
        f"  sftctl train {file} --dry-run",
        f"  sftctl train {file}",
    ]
    return Group(table, text_lines(commands))
