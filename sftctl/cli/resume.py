"""sftctl resume."""

from pathlib import Path
from typing import Annotated

import typer

from sftctl.cli.options import Json, MaxRestarts, RanksHere
from sftctl.errors import ConfigError


def resume(
    run_dir: Annotated[Path, typer.Argument(help="The run directory.", metavar="RUN_DIR")],
    step: Annotated[
        int | None,
        typer.Option(help="Resume from this step. Default: the newest complete checkpoint."),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Train to this many epochs in all; the learning-rate schedule is recomputed.",
        ),
    ] = None,
    max_steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Train to this many steps at most; the learning-rate schedule is recomputed.",
        ),
    ] = None,
    nproc_per_node: RanksHere = 1,
    max_restarts: MaxRestarts = 0,
    allow: Annotated[
        list[str] | None,
        typer.Option("--allow", help="Continue although this key differs from the checkpoint's."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be restored, and exit.")
    ] = False,
    verify_replay: Annotated[
        bool,
        typer.Option(
            "--verify-replay",
            help="Retrain the last checkpoint interval and check that it gives identical results.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Continue a run from its last checkpoint."""
    from sftctl.cli import train_commands as running

    changed = dry_run or allow or max_restarts or (step, epochs, max_steps) != (None, None, None)
    if verify_replay and changed:
        raise ConfigError(
            "--verify-replay can be combined only with --nproc-per-node and --json",
            hint="it retrains the last checkpoint interval as it was trained; leave the others out",
        )
    with running.listening() as stop:
        if verify_replay:
            running.verify_replay(run_dir, nproc_per_node, stop, as_json=json)
            return
        from sftctl.train.resume import ResumeRequest

        request = ResumeRequest(
            run_dir, step, epochs, max_steps, frozenset(allow or ()), announce=running.announce
        )
        if dry_run:
            running.describe_resume(request, nproc_per_node, as_json=json)
        else:
            running.resume(request, nproc_per_node, max_restarts, stop, as_json=json)
