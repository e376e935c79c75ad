"""sftctl resume."""

from pathlib import Path
from typing import Annotated

import typer

from sftctl.cli.options import Json, RanksHere


def resume(
    run_dir: Annotated[Path, typer.Argument(help="The run directory.", metavar="RUN_DIR")],
    step: Annotated[
        int | None, typer.Option(help="From this checkpoint; default: the newest whole one.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="New number of epochs; the cosine is stretched.")
    ] = None,
    nproc_per_node: RanksHere = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be restored, and stop.")
    ] = False,
    json: Json = False,
) -> None:
    """Go on with a run exactly where its checkpoint stands."""
    from sftctl.cli import running
    from sftctl.train.resume import ResumeRequest

    config = running.config_of_run(run_dir)
    request = ResumeRequest(run_dir, step, epochs)
    if dry_run:
        running.describe_resume(config, request, nproc_per_node, as_json=json)
    else:
        running.run(config, request, nproc_per_node, as_json=json)
