"""A run directory is moved, deleted or replaced while it trains: reported, and the run is saved."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sftctl.checkpoint.directory import newest_good
from sftctl.errors import CheckpointError
from sftctl.metrics import StepMetrics
from sftctl.runs.directory import RunDir
from sftctl.tracking.tracker import Tracker
from sftctl.train.resume import ResumeRequest
from sftctl.train.run import report, run_training
from tests.toys.runs import (
    assert_same_end,
    events_named,
    events_of,
    metrics_of,
    same_run,
    toy_config,
)


def train_until(
    folder: Path, monkeypatch: pytest.MonkeyPatch, act: Callable[[Path], object], **settings: Any
) -> CheckpointError:
    """Train a run whose directory `act` changes after step 3; the error that ends it."""

    def then_act(metrics: StepMetrics, tracker: Tracker) -> None:
        report(metrics, tracker)
        if metrics.step == 3:
            act(folder / "run")

    with monkeypatch.context() as patch:
        patch.setattr("sftctl.train.run.report", then_act)
        with pytest.raises(CheckpointError) as raised:
            run_training(toy_config(folder, **settings))
    return raised.value


def delete(run: Path) -> None:
    """Delete a folder in which a save may still be writing."""
    while run.exists():
        shutil.rmtree(run, ignore_errors=True)


def resumed(run: Path) -> None:
    run_training(RunDir.open(run).config(), ResumeRequest(run))


@pytest.mark.parametrize("interval", [0, 1, 4])
def test_a_moved_run_is_saved_where_it_is_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interval: int
) -> None:
    new = tmp_path / "other" / "place"
    new.parent.mkdir()
    settings = {"checkpoint__save_interval": interval}
    error = train_until(tmp_path, monkeypatch, lambda run: run.rename(new), **settings)
    assert error.message == (
        f"{tmp_path}/run: the run directory was moved to {new} while it trained; step 3 is saved "
        "there"
    )
    assert error.hint == f"`sftctl resume {new}` continues it"
    assert not (tmp_path / "run").exists()
    assert newest_good(new / "checkpoints").manifest.step == 3
    assert events_of(new)[-1] == "failed"
    resumed(new)
    run_training(toy_config(tmp_path, "whole", **settings))
    assert_same_end(new, tmp_path / "whole")


@pytest.mark.parametrize("interval", [0, 4])
def test_checkpoints_moved_out_of_the_run_are_a_warning_and_the_run_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interval: int
) -> None:
    def move(metrics: StepMetrics, tracker: Tracker) -> None:
        report(metrics, tracker)
        if metrics.step == 3:
            (tmp_path / "run/checkpoints").rename(tmp_path / "away")

    monkeypatch.setattr("sftctl.train.run.report", move)
    run_training(toy_config(tmp_path, checkpoint__save_interval=interval))
    run = tmp_path / "run"
    [warning] = (event["message"] for event in events_named(run, "warning"))
    step = interval or newest_good(run / "checkpoints").manifest.step
    assert warning == (
        f"{run}/checkpoints: moved to {tmp_path}/away while the run trained; step {step} is saved "
        "in a new folder"
    )
    assert events_of(run)[-1] == "finished" and (run / "final").is_dir()


def test_a_deleted_run_is_made_again_with_what_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = train_until(tmp_path, monkeypatch, delete)
    run = tmp_path / "run"
    assert error.message == (
        f"{run}: the run directory was deleted while it trained; step 3 is saved in {run}, without "
        "its other checkpoints"
    )
    resumed(run)
    run_training(toy_config(tmp_path, "whole"))
    assert_same_end(run, tmp_path / "whole")
    assert events_of(run)[0] == "started"


def test_a_folder_in_the_place_of_the_run_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replace(run: Path) -> None:
        delete(run)
        run.mkdir()
        (run / "mine").write_text("something else")

    error = train_until(tmp_path, monkeypatch, replace)
    new = tmp_path / "run-rescued-3"
    assert str(new) in error.message
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine"]
    resumed(new)
    run_training(toy_config(tmp_path, "whole"))
    assert same_run(metrics_of(new)) == same_run(metrics_of(tmp_path / "whole"))
