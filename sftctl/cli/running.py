"""What train and resume do alike: call the engine on one rank or several, print how it ended."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from sftctl import environment
from sftctl.cli import render
from sftctl.config.schema import RunConfig
from sftctl.errors import EXIT_STOPPED

if TYPE_CHECKING:
    from sftctl.train.resume import ResumeRequest


def run(
    config: RunConfig, request: "ResumeRequest | None", num_ranks: int, *, as_json: bool
) -> None:
    """Train; exit code 75 where a signal stopped it."""
    if request is None:
        from sftctl.train.early import check_before_loading

        check_before_loading(config)
    from sftctl.train.launch import run_on_ranks
    from sftctl.train.run import run_training

    if num_ranks > 1:
        summary = run_on_ranks(num_ranks, run_training, config, request)
    else:
        summary = run_training(config, request)
    if environment.rank() == 0:
        render.emit(summary, render.run_summary(summary), as_json=as_json)
    if summary.status == "stopped":
        raise typer.Exit(EXIT_STOPPED)


def config_of_run(run_dir: Path) -> RunConfig:
    """The configuration that a run directory holds."""
    from sftctl.train.rundir import RunDir

    return RunDir.open(run_dir).config()


def resume_request_of(config: RunConfig) -> "ResumeRequest | None":
    """For --auto-resume: the existing run of the same configuration, or None to start one."""
    from sftctl.train.resume import existing_run

    return existing_run(config)


def print_config(config: RunConfig) -> None:
    """The configuration as TOML, each key under its documentation."""
    from sftctl.config.load import config_to_commented_toml

    print(config_to_commented_toml(config), end="")


def describe(config: RunConfig, *, as_json: bool) -> None:
    """What a run would be."""
    from sftctl.train.preflight import plan_run

    plan = plan_run(config)
    render.emit(plan, render.run_plan(plan), as_json=as_json)


def describe_resume(
    config: RunConfig, request: "ResumeRequest", num_ranks: int, *, as_json: bool
) -> None:
    """What a resume would restore."""
    from sftctl.train.resume import plan_request

    plan = plan_request(config, request, num_ranks)
    render.emit(plan, "\n".join(plan.lines()), as_json=as_json)
