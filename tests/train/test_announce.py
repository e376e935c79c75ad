"""A tracker that fails at the start of a run."""

from pathlib import Path

import pytest

from sftctl.errors import SftctlError
from sftctl.train.run import run_training
from tests.toys.runs import events_named, events_of, toy_config


@pytest.mark.parametrize("error", [OSError("disk"), RuntimeError("service")])
def test_a_service_that_fails_at_the_start_is_a_warning_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    run = _train_with_wandb_that_raises(tmp_path, monkeypatch, error)
    (message,) = [line["message"] for line in events_named(run, "warning")]
    assert message == f"W&B gets no reports: {type(error).__name__}: {error}"
    assert events_of(run)[-1] == "finished"


def test_not_being_logged_in_ends_the_run_at_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SftctlError, match="log in"):
        _train_with_wandb_that_raises(tmp_path, monkeypatch, SftctlError("log in"))


def _train_with_wandb_that_raises(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> Path:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("sftctl.train.announce.WandbTracker", fail)
    config = toy_config(folder, tracking__wandb=True, train__max_steps=1)
    return run_training(config).run_dir
