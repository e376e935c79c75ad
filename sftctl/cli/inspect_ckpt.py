"""sftctl inspect-ckpt."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sftctl.cli.options import Json, run_or_newest
from sftctl.errors import CheckpointError, ConfigError
from sftctl.tracking import status
from sftctl.tracking.working import working

_SHOWN = 20  # at most so many problems are in the error line; the report shows all

if TYPE_CHECKING:
    from sftctl.inspection.inspection import Inspection


def inspect_ckpt(
    path: Annotated[
        Path | None,
        typer.Argument(
            help="A run, a checkpoint, or another tool's checkpoint. Default: the newest run.",
            metavar="[PATH]",
            readable=False,  # an unreadable path must end with exit code 4, not with typer's error
        ),
    ] = None,
    other: Annotated[
        Path | None,
        typer.Argument(help="Compare with this checkpoint.", metavar="[OTHER]", readable=False),
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check all checksums.")] = False,
    tensors: Annotated[
        bool, typer.Option("--tensors", help="Show norm, mean, min, max and NaNs of every tensor.")
    ] = False,
    json: Json = False,
) -> None:
    """Show the content of a checkpoint and whether it can be resumed. Its code is never run."""
    if other is not None and tensors:
        raise ConfigError(
            "--tensors works with one checkpoint, but two are given",
            hint="leave out --tensors: the comparison shows each tensor",
        )
    path = run_or_newest(path)
    with working():
        from sftctl.inspection.inspect import inspect_path

        status.doing(f"{'verifying' if verify else 'reading'} {path}")
        reports = [inspect_path(one, verify) for one in (path, other) if one is not None]
        if other is not None:
            _show_diff(*reports, as_json=json)
        else:
            reports = [_show(reports[0], tensors, as_json=json)]
    damage = [text for report in reports for text in report.damage]
    if damage:
        hints = [report.damage_hint for report in reports if report.damage]
        more = [f"and {len(damage) - _SHOWN} more"] if len(damage) > _SHOWN else []
        raise CheckpointError("; ".join(damage[:_SHOWN] + more), hint=hints[0])


def _show(report: "Inspection", tensors: bool, *, as_json: bool) -> "Inspection":
    """Print the report. Returns it, with what the numbers of its tensors say if they were read."""
    from sftctl.cli.show.checkpoint import checkpoint_report
    from sftctl.cli.show.output import emit, stacked
    from sftctl.cli.show.tensors import statistics_table

    if not tensors:
        emit(
            report.to_json() if as_json else None,
            lambda: checkpoint_report(report),
            as_json=as_json,
        )
        return report
    from sftctl.inspection.tensors.judged import with_values_judged
    from sftctl.inspection.tensors.statistics import tensor_statistics

    statistics = tensor_statistics(report)
    report = with_values_judged(report, statistics)
    emit(
        report.to_json() | {"tensors": statistics} if as_json else None,
        lambda: stacked(checkpoint_report(report), statistics_table(statistics)),
        as_json=as_json,
    )
    return report


def _show_diff(a: "Inspection", b: "Inspection", *, as_json: bool) -> None:
    from sftctl.cli.show.output import emit
    from sftctl.cli.show.tensors import diff_report
    from sftctl.inspection.diff import diff

    found = diff(a, b)
    emit(found.to_json() if as_json else None, lambda: diff_report(found), as_json=as_json)
