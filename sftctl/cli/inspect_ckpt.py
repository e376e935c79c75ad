"""sftctl inspect-ckpt."""

from pathlib import Path
from typing import Annotated

import typer

from sftctl.cli.options import Json
from sftctl.errors import CheckpointError


def inspect_ckpt(
    path: Annotated[Path, typer.Argument(help="A run or a checkpoint.", metavar="PATH")],
    verify: Annotated[bool, typer.Option("--verify", help="Check the hash of every file.")] = False,
    json: Json = False,
) -> None:
    """Show what a checkpoint holds and whether it can be resumed; loads no tensor, runs no code."""
    from sftctl.checkpoint.inspect import inspect_path
    from sftctl.cli import render

    report = inspect_path(path, verify)
    render.emit(report.to_json(), render.checkpoint_report(report), as_json=json)
    if report.damage:
        raise CheckpointError(
            "; ".join(report.damage), hint="`sftctl resume` falls back to the newest whole one"
        )
