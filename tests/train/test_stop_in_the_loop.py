"""A signal at each place of the loop: what was trained, validated and saved, on 1 and 2 ranks."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sftctl import jsonio
from sftctl.checkpoint.directory import list_checkpoints
from sftctl.errors import Stopped
from sftctl.runs.directory import RunDir
from sftctl.train.outlook import Outlook
from sftctl.train.resume import ResumeRequest
from sftctl.train.run import run_training
from tests.toys.ranks import run_in_turn
from tests.toys.runs import (
    assert_same_tensors,
    events_of,
    metrics_of,
    position_of,
    same_run,
    signal_in_call,
    stored_tensors,
    toy_config,
    validation_of,
)

LAST = 4
SETTINGS: dict[str, Any] = {
    "data__val_fraction": 0.3,
    "train__max_steps": LAST,
    "train__eval_interval": 2,
    "checkpoint__save_interval": 2,
}


@dataclass(frozen=True, slots=True)
class Case:
    """A SIGTERM arrives in call number `call` of `function`; what the run has done when it ends."""

    place: str
    function: str
    call: int
    trained: int  # steps
    saved: tuple[int, ...]  # the steps of the checkpoints, in order
    validated: tuple[int, ...]
    status: str = "stopped"
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.place.replace(" ", "-")


BEGIN, STEP = "sftctl.train.run.open_saving", "sftctl.train.run.train_step"
VALIDATE = "sftctl.train.engine.evaluate.evaluation_rounds"
FINAL = "sftctl.train.final.save_pretrained"
NO_VALIDATION = {"data__val_fraction": 0.0}
EVERY_3, AT_THE_END = (
    {"checkpoint__save_interval": interval, "train__final": "last"} for interval in (3, 0)
)
CASES = [
    Case("before the loop", BEGIN, 1, 0, (0,), ()),
    Case("in the validation at step 0", VALIDATE, 1, 0, (0,), ()),
    Case("in step 1", STEP, 1, 1, (1,), (0,)),
    Case("in a step with a save due", STEP, 2, 2, (2,), (0,)),
    Case("in a validation with a save due", VALIDATE, 2, 2, (2,), (0,)),
    Case("in the step before the last", STEP, 3, 3, (2, 3), (0, 2)),
    Case("in the last step", STEP, 4, 4, (2, 4), (0, 2)),
    Case("in the last validation", VALIDATE, 3, 4, (2, 4), (0, 2)),
    Case("in the last step, no save due", STEP, 4, 4, (3, 4), (0, 2), settings=EVERY_3),
    Case("in the last step, one save", STEP, 4, 4, (4,), (0, 2), settings=AT_THE_END),
    Case("in the last step, no validation", STEP, 4, 4, (2, 4), (), settings=NO_VALIDATION),
    Case("in the final model", FINAL, 1, 4, (2, 4), (0, 2, 4), status="finished"),
]  # fmt: skip
by_place = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def train_until_signal(folder: Path, case: Case) -> tuple[str, int]:
    """Train a run that gets the signal; its status and step."""
    module, _, name = case.function.rpartition(".")
    with pytest.MonkeyPatch.context() as patch:
        function = getattr(__import__(module, fromlist=[name]), name)
        patch.setattr(case.function, signal_in_call(case.call, function))
        summary = run_training(toy_config(folder, case.name, **SETTINGS | case.settings))
    return summary.status, summary.step


def train_on(folder: Path, case: Case) -> tuple[str, int]:
    """Resume the run to its end; the first case does so again, when there is nothing to do."""
    run = folder / case.name
    summary = run_training(RunDir.open(run).config(), ResumeRequest(run))
    if case == CASES[0]:
        again = run_training(RunDir.open(run).config(), ResumeRequest(run))
        assert again.status == "nothing_to_do"
    return summary.status, summary.step


def train_whole(folder: Path, name: str, settings: dict[str, Any]) -> None:
    """Train a run that no signal stops."""
    run_training(toy_config(folder, name, **SETTINGS | settings))


Ends = list[tuple[str, int]]


def one_process(calls: list[Callable[[], Any]]) -> list[Any]:
    return [call() for call in calls]


def two_ranks(calls: list[Callable[[], Any]]) -> list[Any]:
    first, second = run_in_turn(2, calls)
    assert first == second  # both ranks stop after the same step
    return first


@pytest.fixture(scope="module", params=[one_process, two_ranks], ids=["one_rank", "two_ranks"])
def ended(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Ends]]:
    """The folder of all runs, and how each session of each run ended: stopped, resumed."""
    folder = tmp_path_factory.mktemp("stops")
    calls: list[Callable[[], Any]] = [
        partial(train_whole, folder, "whole", {}),
        partial(train_whole, folder, "whole-no-validation", NO_VALIDATION),
    ]
    for case in CASES:
        calls += [partial(train_until_signal, folder, case), partial(facts, folder / case.name)]
        calls += [partial(train_on, folder, case)]
    results = iter(request.param(calls)[2:])
    return folder, {case.name: [next(results) for _ in range(3)] for case in CASES}


def facts(run: Path) -> dict[str, Any]:
    """What a run's directory says: steps trained, saved and validated, and the last event."""
    events = list(jsonio.read_lines(run / "events.jsonl"))
    return {
        "trained": len(metrics_of(run)) if (run / "metrics.jsonl").exists() else 0,
        "saved": tuple(line["step"] for line in events if line["event"] == "saved"),
        "checkpoints": tuple(int(p.name[5:]) for p in list_checkpoints(run / "checkpoints")),
        "validated": tuple(line["step"] for line in events if line["event"] == "evaluation"),
        "last": (events[-1]["event"], events[-1]["step"], events[-1].get("signal")),
        "final": (run / "final").is_dir(),
    }


@by_place
def test_all_ranks_stop_after_the_same_step_and_save_it_once(
    ended: tuple[Path, dict[str, Any]], case: Case
) -> None:
    (status, step), found, _ = ended[1][case.name]
    assert (status, step) == (case.status, case.trained)
    is_stopped = case.status == "stopped"
    assert found == {
        "trained": case.trained,
        "saved": case.saved,
        "checkpoints": case.saved,
        "validated": case.validated,
        "last": (case.status, case.trained, "SIGTERM" if is_stopped else None),
        "final": not is_stopped,
    }


@by_place
def test_the_resumed_run_ends_as_the_run_that_no_signal_stopped(
    ended: tuple[Path, dict[str, Any]], case: Case
) -> None:
    folder, sessions = ended
    status, step = sessions[case.name][2]
    assert (status, step) == ("finished" if case.status == "stopped" else "nothing_to_do", LAST)
    run = folder / case.name
    whole = folder / ("whole-no-validation" if case.settings == NO_VALIDATION else "whole")
    assert same_run(metrics_of(run)) == same_run(metrics_of(whole))
    assert validation_of(run) == validation_of(whole)
    assert events_of(run)[-1] == "finished"
    last = f"checkpoints/step-{LAST:08d}"
    assert position_of(run / last) == position_of(whole / last)
    assert_same_tensors(stored_tensors(run / last), stored_tensors(whole / last))
    model = "final/model.safetensors"
    assert (run / model).read_bytes() == (whole / model).read_bytes()


def test_after_a_signal_in_a_validation_no_further_step_is_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    promised = []

    class Listening(Outlook):
        def begin_step(self) -> None:
            super().begin_step()
            promised.append(self().partition(" (")[0])

    monkeypatch.setattr("sftctl.train.run.Outlook", Listening)
    train_until_signal(tmp_path, next(case for case in CASES if case.function == VALIDATE))
    assert promised == ["step 0 is saved"]


def test_a_signal_while_the_largest_micro_batch_is_tried_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_training(toy_config(tmp_path, "run", **SETTINGS))
    before = sorted((tmp_path / "run").rglob("*"))
    interrupted = "sftctl.train.opening.rehearse"
    monkeypatch.setattr(interrupted, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped, match="nothing to save, nothing lost"):
        run_training(toy_config(tmp_path, "new"))
    assert not (tmp_path / "new").exists()
    request = ResumeRequest(tmp_path / "run", step=2)  # it would move step 4 away
    with pytest.raises(Stopped, match="nothing to save, nothing lost"):
        run_training(RunDir.open(tmp_path / "run").config(), request)
    assert sorted((tmp_path / "run").rglob("*")) == before
