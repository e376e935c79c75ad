"""Code for `train` and `resume`: run on one or several ranks, and print the result."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from sftctl import environment
from sftctl.cli import streams
from sftctl.cli.show.output import emit, text_lines
from sftctl.cli.show.run import run_summary
from sftctl.config.schema import RunConfig
from sftctl.errors import EXIT_STOPPED, CheckpointError, RankAlone
from sftctl.tracking import status
from sftctl.words import printable

if TYPE_CHECKING:
    from sftctl.data.storage.joined import Store
    from sftctl.train.resume import ResumePlan, ResumeRequest
    from sftctl.train.stop import StopRequest


@contextmanager
def listening() -> Iterator["StopRequest"]:
    """Handle signals until the end of the process, also while torch is loading."""
    from sftctl.train.stop import StopRequest

    with status.shown(), StopRequest(may_leave=True) as stop:
        status.doing("loading torch")
        try:
            environment.load_large_libraries()
            yield stop
        finally:
            stop.outlive()


def require_ranks(num_ranks: int) -> None:
    """Check the environment variables of a launcher, such as WORLD_SIZE.

    Raises RankAlone if they are incomplete, or if --nproc-per-node is used in addition to a
    launcher. Warns if SLURM started several tasks that would train separately.
    """
    environment.require_ranks()
    if num_ranks > 1 and environment.world_size() > 1:
        raise RankAlone(
            f"--nproc-per-node {num_ranks}, but a launcher has started this process as one of "
            f"{environment.world_size()} ranks (WORLD_SIZE)",
            hint=f"leave out --nproc-per-node, or `{environment.unset_ranks()}`",
        )
    tasks = environment.tasks_without_ranks()
    if tasks and num_ranks == 1:
        streams.tell(
            f"warning: SLURM started {tasks} tasks, but WORLD_SIZE is not set: each task trains "
            "separately; start one task per node with torchrun, or set RANK and WORLD_SIZE"
        )


def start(
    config: RunConfig,
    num_ranks: int,
    max_restarts: int,
    *,
    auto_resume: bool,
    verify_data: bool,
    as_json: bool,
) -> None:
    """Train a new run. With `auto_resume`, continue the run in `output_dir`, if there is one."""
    require_ranks(num_ranks)
    with listening() as stop:
        request = _existing_run(config) if auto_resume else None
        if request is None:
            from sftctl.train.preflight.paths import check_before_loading

            config = check_before_loading(config)
        else:  # settings that were not typed keep their values in the run
            config = request.applied_to(config_of_run(request.run_dir))
        run(
            config, request, num_ranks, max_restarts, stop, verify_data=verify_data, as_json=as_json
        )


def resume(
    request: "ResumeRequest",
    num_ranks: int,
    max_restarts: int,
    stop: "StopRequest",
    *,
    verify_data: bool,
    as_json: bool,
) -> None:
    """Continue a run."""
    require_ranks(num_ranks)
    config = config_of_run(request.run_dir)
    run(config, request, num_ranks, max_restarts, stop, verify_data=verify_data, as_json=as_json)


def run(
    config: RunConfig,
    request: "ResumeRequest | None",
    num_ranks: int,
    max_restarts: int,
    stop: "StopRequest",
    *,
    verify_data: bool,
    as_json: bool,
) -> None:
    """Train, and print the summary. Exits with code 75 if a signal stopped the run."""
    if num_ranks > 1 or max_restarts:
        from sftctl.train.launch import train_on_ranks

        summary = train_on_ranks(
            config, request, num_ranks, max_restarts, stop, verify_data=verify_data
        )
    else:
        from sftctl.train.run import run_training

        summary = run_training(config, request, stop=stop, verify_data=verify_data)
    if environment.rank() == 0:
        emit(summary, lambda: run_summary(summary, config.adapter.lora), as_json=as_json)
    if summary.status == "stopped":
        raise typer.Exit(EXIT_STOPPED)


def verify_replay(run_dir: Path, num_ranks: int, stop: "StopRequest", *, as_json: bool) -> None:
    """Train the last steps again and compare. Raises CheckpointError if they differ."""
    require_ranks(num_ranks)
    from sftctl.train.replay import replay

    if num_ranks > 1:
        from sftctl.train.launch import run_on_ranks

        verdict = run_on_ranks(num_ranks, replay, run_dir, stop=stop)
    else:
        verdict = replay(run_dir, stop=stop)
    if environment.rank() == 0:
        emit(verdict, lambda: text_lines(verdict.lines()), as_json=as_json)
    if not verdict.is_equal:
        raise CheckpointError(
            f"{run_dir}: the replay differs: {verdict.differences[0]}",
            hint="possible causes: other hardware, versions or thread counts; if not, report a bug",
        )


def announce(plan: "ResumePlan", allow: frozenset[str]) -> None:
    """Print the plan of a resume to stderr, before anything is loaded or changed."""
    streams.tell("\n".join(map(printable, plan.lines(allow))))


def config_of_run(run_dir: Path) -> RunConfig:
    """The configuration in a run directory."""
    from sftctl.runs.directory import RunDir

    return RunDir.open(run_dir).resolved_config()


def _existing_run(config: RunConfig) -> "ResumeRequest | None":
    """The request to continue the run in `output_dir`; None if there is no run."""
    from sftctl.train.resume import existing_run

    return existing_run(config, announce)


def print_config(config: RunConfig, *, as_json: bool) -> None:
    """Print the configuration as TOML with documentation, or as JSON."""
    from sftctl.config.load import config_to_commented_toml, config_to_dict

    if as_json:
        emit(config_to_dict(config), lambda: "", as_json=True)
    else:
        print(config_to_commented_toml(config), end="")


def describe(
    config: RunConfig,
    origins: dict[str, str],
    num_ranks: int,
    *,
    auto_resume: bool,
    verify_data: bool,
    as_json: bool,
) -> None:
    """Print what `start` would do. Raises the error that `start` would raise."""
    request = _existing_run(config) if auto_resume else None
    if request is not None:
        with listening() as stop:
            describe_resume(request, num_ranks, stop, verify_data=verify_data, as_json=as_json)
    else:
        _describe_new_run(config, origins, num_ranks, verify_data=verify_data, as_json=as_json)


def _describe_new_run(
    config: RunConfig,
    origins: dict[str, str],
    num_ranks: int,
    *,
    verify_data: bool,
    as_json: bool,
) -> None:
    from sftctl.train.preflight.paths import check_before_loading

    with listening() as stop:
        config = check_before_loading(config)
        from sftctl.cli.show.dry_run import run_plan
        from sftctl.train.preflight.dry_run import plan_run
        from sftctl.train.preflight.findings import refuse_errors

        verify = _verify_here() if verify_data else None
        plan = plan_run(config, origins, num_ranks, verify, stop)
    emit(plan.to_json(), lambda: run_plan(plan), as_json=as_json)
    refuse_errors(plan.findings)


def describe_resume(
    request: "ResumeRequest",
    num_ranks: int,
    stop: "StopRequest",
    *,
    verify_data: bool,
    as_json: bool,
) -> None:
    """Print what a resume would restore. Raises the error that the resume would raise."""
    from sftctl.train.resume import plan_request

    plan = plan_request(request, num_ranks, stop, _verify_here() if verify_data else None)
    emit(plan, lambda: text_lines(plan.lines(request.allow)), as_json=as_json)
    plan.refuse(request)


def _verify_here() -> Callable[["Store"], None]:
    from sftctl.train.store_check import verify_now
    from sftctl.world import ALONE

    return partial(verify_now, world=ALONE)
