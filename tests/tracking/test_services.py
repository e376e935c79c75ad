"""What TensorBoard, Trackio and SwanLab wrote, read back: each step once, also after a kill."""

import os
import signal
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sftctl.config.load import load_config
from sftctl.errors import ConfigError
from sftctl.tracking.services import require_service
from sftctl.tracking.swanlab import SwanLabTracker
from sftctl.tracking.tensorboard import TensorBoardTracker
from sftctl.tracking.tracker import Tracker
from sftctl.tracking.trackio import TrackioTracker
from sftctl.tracking.values import Rows, Values
from sftctl.train.resume import ResumeRequest
from sftctl.train.run import run_training
from tests.toys.metrics import step_metrics
from tests.toys.runs import events_named, metrics_of, toy_config

RUN_ID = "0123456789abcdef" * 2
needs_swanlab = pytest.mark.skipif(find_spec("swanlab") is None, reason="not installed")

Series = dict[str, list[tuple[int, float]]]  # tag -> (step, value), as written


def in_tensorboard(run: Path) -> Series:
    found = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    found.Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def in_trackio(run: Path) -> Series:
    from trackio.sqlite_storage import SQLiteStorage

    series: Series = {}
    for row in SQLiteStorage.get_logs("a-project", run.name):
        for tag, value in row.items():
            if "/" in tag:
                series.setdefault(tag, []).append((row["step"], value))
    return series


def in_swanlab(run: Path) -> Series:
    """The numbers that `swanlab sync` would send, of one session after the other."""
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.sdk.internal.core_python.store import DataStoreReader

    series: Series = {}
    for file in sorted((run / "swanlab").glob(f"run-*-{RUN_ID}/*.swanlab")):
        reader = DataStoreReader()
        reader.open(file)
        for scalar in [Record.FromString(data).scalar for data in reader]:
            if scalar.key:
                series.setdefault(scalar.key, []).append((scalar.step, scalar.value.number))
        reader.close()
    return series


def open_tensorboard(run: Path, kept_step: int, resumed: bool) -> Tracker:
    return TensorBoardTracker(run, kept_step, resumed=resumed)


def open_trackio(run: Path, kept_step: int, resumed: bool) -> Tracker:
    return TrackioTracker(run, "a-project", {"train": {"epochs": 2}}, resumed=resumed)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """SwanLab without anybody's login."""
    for name in [name for name in os.environ if name.startswith("SWANLAB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SWANLAB_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("SWANLAB_MODE", "offline")


@pytest.fixture(autouse=True)
def database(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Trackio's database of this test; it reads TRACKIO_DIR when it is imported."""
    from trackio import sqlite_storage, utils

    for module in (sqlite_storage, utils):
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "database")
    (tmp_path / "database").mkdir()


def open_swanlab(run: Path, kept_step: int, resumed: bool) -> Tracker:
    return SwanLabTracker(run, "a-project", RUN_ID, {"train": {"epochs": 2}}, resumed=resumed)


SERVICES = [
    pytest.param(open_tensorboard, in_tensorboard, id="tensorboard"),
    pytest.param(open_trackio, in_trackio, id="trackio"),
    pytest.param(open_swanlab, in_swanlab, id="swanlab", marks=needs_swanlab),
]


@pytest.mark.parametrize(("opened", "written"), SERVICES)
def test_a_resumed_run_has_each_step_and_evaluation_once(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    opened: Callable[[Path, int, bool], Tracker],
    written: Callable[[Path], Series],
) -> None:
    run = tmp_path / "a-run"
    run.mkdir()
    for first_step, last_step in ((0, 5), (3, 7)):  # the checkpoint was of step 3
        tracker = opened(run, first_step, first_step > 0)
        if first_step == 0:
            tracker.event("evaluation", 0, validation_loss=9.0, num_target_tokens=1)
        for step in range(first_step + 1, last_step + 1):
            tracker.log(step_metrics(step, loss=10.0 - step))
            if step % 2 == 0:
                tracker.event("evaluation", step, validation_loss=step / 2, num_target_tokens=1)
        tracker.event("sample", last_step, number=1, prompt="Hi", reply="Ho", reference="Hu")
        tracker.event("finished", last_step)
        tracker.close()
    series = written(run)
    assert sorted(series["train/loss"]) == [(step, 10.0 - step) for step in range(1, 8)]
    assert sorted(series["validation/loss"]) == [(0, 9.0), (2, 1.0), (4, 2.0), (6, 3.0)]
    assert capsys.readouterr().out == ""


@needs_swanlab
def test_swanlab_leaves_ctrl_c_and_errors_alone_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    def handlers() -> tuple[object, object]:
        return signal.getsignal(signal.SIGINT), sys.excepthook

    run, before = tmp_path / "a-run", handlers()
    run.mkdir()
    tracker = open_swanlab(run, 0, False)
    assert handlers() == before
    tracker.log(step_metrics(1))
    tracker.log(step_metrics(2))
    tracker.close()
    assert handlers() == before
    [file] = (run / "swanlab").glob("run-*/*.swanlab")
    file.write_bytes(file.read_bytes()[:-9])  # a killed session ends inside a record
    empty = run / "swanlab" / f"run-20010101_000000-{RUN_ID}"
    empty.mkdir()
    (empty / "run.swanlab").touch()  # or it wrote nothing
    tracker = open_swanlab(run, 0, True)
    for step in (1, 2, 3):
        tracker.log(step_metrics(step))
    tracker.close()
    (empty / "run.swanlab").unlink()
    assert [step for step, _ in in_swanlab(run)["train/loss"]] == [1, 2, 3]


@needs_swanlab
@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("online", ("tracking.trackers: swanlab: not logged in", "swanlab login")),
        ("cloudy", ("SwanLab refuses a setting: mode", "SWANLAB_… environment variables")),
    ],
)
def test_swanlab_refuses_before_training(
    monkeypatch: pytest.MonkeyPatch, mode: str, said: tuple[str, str]
) -> None:
    monkeypatch.setenv("SWANLAB_MODE", mode)
    with pytest.raises(ConfigError) as raised:
        require_service("swanlab")
    assert raised.value.hint is not None
    assert said[0] in raised.value.message and said[1] in raised.value.hint


def test_another_run_of_the_same_name_is_a_new_one_in_trackio(tmp_path: Path) -> None:
    for loss in (1.0, 2.0):
        tracker = open_trackio(tmp_path / "same", 0, False)
        tracker.log(step_metrics(1, loss=loss))
        tracker.close()
    from trackio.sqlite_storage import SQLiteStorage

    assert len(SQLiteStorage.get_run_records("a-project")) == 2


def test_a_run_writes_to_tensorboard_and_goes_on_there(tmp_path: Path) -> None:
    keys: dict[str, Any] = {
        "tracking__trackers": ["tensorboard"],
        "train__max_steps": 2,
        "data__val_fraction": 0.3,
    }
    config = toy_config(tmp_path, **keys)
    run = run_training(config).run_dir
    run_training(config, ResumeRequest(run, step=1, max_steps=3))
    losses: list[Any] = [(line["step"], pytest.approx(line["loss"])) for line in metrics_of(run)]
    series = in_tensorboard(run)
    assert series["train/loss"] == losses
    last = events_named(run, "evaluation")[-1]["validation_loss"]
    assert series["validation/loss"][-1] == pytest.approx((3, last))


def test_a_run_that_died_before_its_first_checkpoint_has_step_0_once(tmp_path: Path) -> None:
    keys: dict[str, Any] = {
        "tracking__trackers": ["tensorboard"],
        "train__max_steps": 1,
        "data__val_fraction": 0.3,
    }
    config = toy_config(tmp_path, **keys)
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr("sftctl.train.run.train_step")
        with pytest.raises(NameError):
            run_training(config)
    run_training(config, ResumeRequest(run))
    assert [event["step"] for event in events_named(run, "evaluation")] == [0, 0, 1]
    assert [step for step, _ in in_tensorboard(run)["validation/loss"]] == [0, 1]


def test_rows_are_sent_once_and_in_order() -> None:
    sent: list[tuple[int, Values]] = []
    rows = Rows(lambda step, row: sent.append((step, dict(row))), last_step=1)
    for step, values in ((1, {"a": 1.0}), (2, {"a": 2.0}), (2, {"b": 3.0}), (3, {"a": 4.0})):
        rows.add(step, values)
    assert sent == [(2, {"a": 2.0, "b": 3.0})]
    rows.flush()
    rows.flush()
    assert sent[1:] == [(3, {"a": 4.0})]


@pytest.mark.parametrize(
    ("last_step", "step", "is_sent"), [(4, 4, True), (5, 4, False), (0, 0, False), (3, 4, True)]
)
def test_an_evaluation_that_a_resumed_session_makes_up_is_sent(
    last_step: int, step: int, is_sent: bool
) -> None:
    """The session before it was stopped after step 4, before its evaluation."""
    sent: list[tuple[int, Values]] = []
    rows = Rows(lambda step, row: sent.append((step, dict(row))), last_step)
    rows.add_evaluation(step, {"validation/loss": 1.0})
    rows.add(6, {"train/loss": 2.0})
    rows.add_evaluation(6, {"validation/loss": 3.0})
    rows.flush()
    made_up = [(step, {"validation/loss": 1.0})] if is_sent else []
    assert sent == [*made_up, (6, {"train/loss": 2.0, "validation/loss": 3.0})]


def test_a_tracker_that_does_not_exist_is_named() -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(None, ["tracking.trackers=tensorbord,wandb"])
    assert raised.value.message == (
        "tracking.trackers: tensorbord is not a tracker; did you mean tensorboard?"
    )
    assert raised.value.hint == "there are wandb, tensorboard, trackio, swanlab"
    both = load_config(None, ["tracking.trackers=wandb", "tracking.wandb=true"])
    assert both.tracking.services == ("wandb",)


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    require_service("trackio")
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ConfigError, match="tracking.trackers: trackio is not installed") as raised:
        require_service("trackio")
    assert raised.value.hint == "pip install 'sftctl[trackio]'"
