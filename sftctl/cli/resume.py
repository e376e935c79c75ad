"""sftctl resume."""

from pathlib import Path
from typing import Annotated

import typer

from sftctl.cli.options import Json, MaxRestarts, RanksHere, VerifyData, run_or_newest
from sftctl.errors import ConfigError, NoCheckpoint
from sftctl.words import in_shell

RunDirectory = Annotated[
    Path | None,
    typer.Argument(
        help="The run directory. Default: the newest unfinished run.", metavar="[RUN_DIR]"
    ),
]

Allowed = Annotated[
    list[str] | None,
    typer.Option("--allow", help="Continue even if this key differs from the checkpoint."),
]


def resume(
    run_dir: RunDirectory = None,
    step: Annotated[
        int | None,
        typer.Option(help="Resume from this step. Default: the newest complete checkpoint."),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="End after this number of epochs in total. Changes the learning rate schedule.",
        ),
    ] = None,
    max_steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="End at this step at the latest. Changes the learning rate schedule.",
        ),
    ] = None,
    nproc_per_node: RanksHere = 1,
    max_restarts: MaxRestarts = 0,
    allow: Allowed = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be restored, and exit.")
    ] = False,
    verify_replay: Annotated[
        bool,
        typer.Option(
            "--verify-replay",
            help="Train the steps between the last two checkpoints again, and compare every bit.",
        ),
    ] = False,
    verify_data: VerifyData = False,
    json: Json = False,
) -> None:
    """Continue a run from its last checkpoint."""
    from sftctl.cli import train_commands as running

    changed = dry_run or allow or max_restarts or (step, epochs, max_steps) != (None, None, None)
    _refuse_combinations(verify_replay and bool(changed), step is not None and max_restarts > 0)
    run_dir = run_or_newest(run_dir, unfinished=True)
    _refuse_parts_of_runs(run_dir)
    with running.listening() as stop:
        if verify_replay:
            running.verify_replay(run_dir, nproc_per_node, stop, as_json=json)
            return
        from sftctl.train.resume import ResumeRequest

        request = ResumeRequest(
            run_dir, step, epochs, max_steps, frozenset(allow or ()), announce=running.announce
        )
        if dry_run:
            running.describe_resume(
                request, nproc_per_node, stop, verify_data=verify_data, as_json=json
            )
        else:
            running.resume(
                request, nproc_per_node, max_restarts, stop, verify_data=verify_data, as_json=json
            )


def _refuse_combinations(replay_and_others: bool, step_and_restarts: bool) -> None:
    """Raise ConfigError for flags that can't be combined."""
    if replay_and_others:
        raise ConfigError(
            "--verify-replay can be combined only with --nproc-per-node and --json",
            hint="it repeats the last checkpoint interval unchanged: leave out the other flags",
        )
    if step_and_restarts:
        raise ConfigError(
            "--step with --max-restarts: a restart would continue from the newest checkpoint",
            hint="leave out --max-restarts",
        )


def _refuse_parts_of_runs(path: Path) -> None:
    """Raise NoCheckpoint for a file or folder inside a run. The hint has the right command."""
    from sftctl.checkpoint.directory import list_checkpoints
    from sftctl.checkpoint.layout import step_of
    from sftctl.runs.directory import RunDir
    from sftctl.runs.newest import run_around

    if RunDir(path).run_file.is_file() or (run := run_around(path)) is None:
        return
    step, command = step_of(path.name), f"sftctl resume {in_shell(run)}"
    if step is not None and path.parent.name == "checkpoints":
        newest = list_checkpoints(RunDir(run).checkpoints)[-1:]
        is_newest = any(path.samefile(one) for one in newest)
        older = f"`{command} --step {step}` (this moves later checkpoints away)"
        hint = f"`{command}`" if is_newest else older
        raise NoCheckpoint(f"{path}: a checkpoint; resume needs its run", hint=f"type {hint}")
    raise NoCheckpoint(f"{path}: a part of a run; resume needs the run", hint=f"type `{command}`")
