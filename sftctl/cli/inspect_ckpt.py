"""sftctl inspect-ckpt."""

from pathlib import Path
from typing import Annotated

import typer

from sftctl.cli.options import Json
from sftctl.errors import CheckpointError


def inspect_ckpt(
    path: Annotated[
        Path, typer.Argument(help="A run, a checkpoint, or another tool's.", metavar="PATH")
    ],
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every byte that has a checksum.")
    ] = False,
    json: Json = False,
) -> None:
    """Show what a checkpoint holds and whether it can be resumed; loads no tensor, runs no code."""
    from sftctl.cli import render, render_inspect
    from sftctl.inspection.detect import inspect_path

    report = inspect_path(path, verify)
    render.emit(report.to_json(), render_inspect.checkpoint_report(report), as_json=json)
    if report.damage:
        raise CheckpointError("; ".join(report.damage), hint=report.damage_hint)
