"""What is reported at the start of a run, and a tracker that fails there."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from sftctl.data.prepare.prepare import prepare_files
from sftctl.errors import SftctlError
from sftctl.train.preflight.dry_run import plan_run
from sftctl.train.resume import ResumeRequest
from sftctl.train.run import run_training
from sftctl.trained.open import open_trained
from tests.toys.runs import events_named, events_of, toy_config


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_parameter_is_counted_once(tmp_path: Path, dtype: str) -> None:
    summary = run_training(toy_config(tmp_path, train__dtype=dtype, train__max_steps=1))
    (started,) = events_named(summary.run_dir, "started")
    weights = open_trained(summary.run_dir).model.parameters()
    assert started["num_parameters"] == sum(weight.numel() for weight in weights)


def test_a_busy_machine_is_one_warning_of_each_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (1000.0, 0.0, 0.0))
    config = toy_config(tmp_path, train__max_steps=1)
    run = run_training(config).run_dir
    run_training(config, ResumeRequest(run, max_steps=2))
    first, second = (one["message"] for one in events_named(run, "warning"))
    assert first == second and first.startswith("machine: other processes keep it busy: a load of ")


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

    monkeypatch.setattr("sftctl.tracking.services.WandbTracker", fail)
    config = toy_config(folder, tracking__wandb=True, train__max_steps=1)
    return run_training(config).run_dir


def test_the_rows_of_a_file_are_accounted_for_at_the_start(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = toy_config(tmp_path, train__max_steps=1)
    with (tmp_path / "toy.jsonl").open("a") as file:
        file.write('{broken\n{"messages": []}\n{broken\n')
    run = run_training(config).run_dir
    (data,) = events_named(run, "data")
    assert (data["rows_read"], data["rows_kept"]) == (25, 22)
    assert data["rows_dropped"] == {"broken_json": 2, "empty": 1}
    shown = capfd.readouterr().err
    path = tmp_path / "toy.jsonl"
    assert f"\ndata {path}: 22 of 25 rows kept; dropped: broken_json 2 (first {path}:23), " in shown
    assert f"empty 1 (first {path}:24); ledger: {data['ledger']}\n" in shown
    assert Path(data["ledger"]).read_bytes().count(b"\n") == 3
    assert "warning: rows: 12% of the rows are dropped (broken_json 2, empty 1); " in shown
    plan = plan_run(replace(config, output_dir=tmp_path / "other"))
    (kept, dropped) = [one for one in plan.findings if one.subject == "rows"]
    assert (kept.level, kept.what) == ("ok", data["message"])
    assert (dropped.level, dropped.what[:4]) == ("warning", "12% ")


def test_a_store_that_was_prepared_before_is_not_accounted_for_again(tmp_path: Path) -> None:
    config = toy_config(tmp_path, train__max_steps=1)
    prepare_files([tmp_path / "toy.jsonl"], [], tmp_path / "store", config)
    data = replace(config.data, path=str(tmp_path / "store"))
    run = run_training(replace(config, data=data)).run_dir
    assert events_named(run, "data") == []
