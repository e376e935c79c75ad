"""What `train` and `resume` share: run on one rank or several, and print how it ended."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from sftctl import environment
from sftctl.cli import streams
from sftctl.cli.show.output import emit
from sftctl.cli.show.run import run_summary
from sftctl.config.schema import RunConfig
from sftctl.errors import EXIT_STOPPED, CheckpointError, ConfigError

if TYPE_CHECKING:
    from sftctl.train.resume import ResumePlan, ResumeRequest
    from sftctl.train.stop import StopRequest


@contextmanager
def listening() -> Iterator["StopRequest"]:
    """Handle signals from here to the end of the process, also while torch is loading."""
    from sftctl.train.stop import StopRequest

    with StopRequest() as stop:
        try:
            yield stop
        finally:
            stop.outlive()


def start(
    config: RunConfig, num_ranks: int, max_restarts: int, *, auto_resume: bool, as_json: bool
) -> None:
    """Train a new run, or with `auto_resume` continue the existing one."""
    with listening() as stop:
        request = _existing_run(config) if auto_resume else None
        if request is None:
            from sftctl.train.preflight.paths import check_before_loading

            config = check_before_loading(config)
        run(config, request, num_ranks, max_restarts, stop, as_json=as_json)


def resume(
    request: "ResumeRequest",
    num_ranks: int,
    max_restarts: int,
    stop: "StopRequest",
    *,
    as_json: bool,
) -> None:
    """Continue a run."""
    if request.step is not None and max_restarts:
        raise ConfigError(
            "--step with --max-restarts: a restart continues from the newest checkpoint",
            hint="resume from that step first, without --max-restarts",
        )
    config = config_of_run(request.run_dir)
    run(config, request, num_ranks, max_restarts, stop, as_json=as_json)


def run(
    config: RunConfig,
    request: "ResumeRequest | None",
    num_ranks: int,
    max_restarts: int,
    stop: "StopRequest",
    *,
    as_json: bool,
) -> None:
    """Train; exit code 75 if a signal stopped it."""
    if num_ranks > 1 or max_restarts:
        from sftctl.train.launch import train_on_ranks

        summary = train_on_ranks(config, request, num_ranks, max_restarts, stop)
    else:
        from sftctl.train.run import run_training

        summary = run_training(config, request, stop=stop)
    if environment.rank() == 0:
        emit(summary, run_summary(summary), as_json=as_json)
    if summary.status == "stopped":
        raise typer.Exit(EXIT_STOPPED)


def verify_replay(run_dir: Path, num_ranks: int, stop: "StopRequest", *, as_json: bool) -> None:
    """Train the last steps again and compare; CheckpointError if they differ."""
    from sftctl.train.replay import replay

    if num_ranks > 1:
        from sftctl.train.launch import run_on_ranks

        verdict = run_on_ranks(num_ranks, replay, run_dir, stop=stop)
    else:
        verdict = replay(run_dir, stop=stop)
    if environment.rank() == 0:
        emit(verdict, "\n".join(verdict.lines()), as_json=as_json)
    if not verdict.is_equal:
        raise CheckpointError(
            f"{run_dir}: the replay differs: {verdict.differences[0]}",
            hint="other hardware, versions or threads can cause this; otherwise report a bug",
        )


def announce(plan: "ResumePlan", allow: frozenset[str]) -> None:
    """Print the plan of a resume to stderr, before anything is loaded or changed."""
    streams.tell("\n".join(plan.lines(allow)))


def config_of_run(run_dir: Path) -> RunConfig:
    """The configuration in a run directory."""
    from sftctl.runs.directory import RunDir

    return RunDir.open(run_dir).config()


def _existing_run(config: RunConfig) -> "ResumeRequest | None":
    """The request to continue the run in `output_dir`; None if there is no run."""
    from sftctl.train.resume import existing_run

    return existing_run(config, announce)


def print_config(config: RunConfig, *, as_json: bool) -> None:
    """Print the configuration as TOML, each key under its documentation."""
    from sftctl.config.load import config_to_commented_toml, config_to_dict

    if as_json:
        emit(config_to_dict(config), "", as_json=True)
    else:
        print(config_to_commented_toml(config), end="")


def describe(
    config: RunConfig,
    origins: dict[str, str],
    num_ranks: int,
    *,
    auto_resume: bool,
    as_json: bool,
) -> None:
    """Print what `start` would do; raise the error that it would fail with."""
    request = _existing_run(config) if auto_resume else None
    if request is not None:
        describe_resume(request, num_ranks, as_json=as_json)
    else:
        _describe_new_run(config, origins, num_ranks, as_json=as_json)


def _describe_new_run(
    config: RunConfig, origins: dict[str, str], num_ranks: int, *, as_json: bool
) -> None:
    from sftctl.cli.show.dry_run import run_plan
    from sftctl.train.preflight.dry_run import plan_run
    from sftctl.train.preflight.findings import refuse_errors
    from sftctl.train.preflight.paths import check_before_loading

    plan = plan_run(check_before_loading(config), origins, num_ranks)
    emit(plan.to_json(), run_plan(plan), as_json=as_json)
    refuse_errors(plan.findings)


def describe_resume(request: "ResumeRequest", num_ranks: int, *, as_json: bool) -> None:
    """Print what a resume would restore; raise the error that it would fail with."""
    from sftctl.train.resume import plan_request

    plan = plan_request(request, num_ranks)
    emit(plan, "\n".join(plan.lines(request.allow)), as_json=as_json)
    plan.refuse(request)
