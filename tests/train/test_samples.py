"""Samples: their prompts, their times, and that they change nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sftctl.data.example import TokenizedExample
from sftctl.train.answers.samples import Prompt, show_samples
from sftctl.train.opening import restored_session
from sftctl.train.resume import ResumeRequest
from sftctl.train.run import run_training
from sftctl.train.stop import StopRequest
from sftctl.world import ALONE
from tests.toys.metrics import Memory
from tests.toys.ranks import run_ranks
from tests.toys.runs import assert_same_end, events_named, events_of, toy_config

SETTINGS = {"data__val_fraction": 0.3, "train__eval_interval": 2, "train__epochs": 1}


def train(folder: Path, name: str, settings: dict[str, Any]) -> Path:
    return run_training(toy_config(folder, name, **SETTINGS | settings)).run_dir


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    train(folder, "without", {})
    train(folder, "with", {"tracking__samples": 2})
    return folder


def test_samples_change_no_bit_of_a_run(folder: Path) -> None:
    assert_same_end(folder / "with", folder / "without")
    assert "sample" not in events_of(folder / "without")


def test_the_same_prompts_are_answered_at_every_evaluation(folder: Path) -> None:
    samples = events_named(folder / "with", "sample")
    steps = [line["step"] for line in events_named(folder / "with", "evaluation")]
    assert [(one["step"], one["number"]) for one in samples] == [
        (step, number) for step in steps for number in (0, 1)
    ]
    for number in (0, 1):
        same = [one for one in samples if one["number"] == number]
        assert len({one["prompt"] for one in same}) == 1
        assert "Count to" in same[0]["prompt"] and same[0]["prompt"].endswith("assistant\n")
        assert same[0]["reference"].startswith("1")
        assert same[0]["question"].startswith("Count to")
        assert len({one["reply"] for one in same}) > 1  # it learns meanwhile


@pytest.mark.parametrize(("signal_name", "num_samples"), [("SIGTERM", 0), (None, 2)])
def test_a_signal_ends_the_samples_at_once(
    folder: Path, tmp_path: Path, signal_name: str | None, num_samples: int
) -> None:
    tracker, stop = Memory(), StopRequest(tmp_path / "stop")
    with restored_session(ResumeRequest(folder / "with"), ALONE, stop) as session:
        if signal_name is not None:
            (tmp_path / "stop").write_text(signal_name)
        show_samples(session, tracker)
        assert session.state.loss_module.training
    assert [name for name, _, _ in tracker.events] == ["sample"] * num_samples


@pytest.mark.parametrize("room", [0, 1])
def test_a_prompt_without_room_for_an_answer_is_left_out(folder: Path, room: int) -> None:
    """The model has `room` positions after the shortest prompt."""
    tracker = Memory()
    with restored_session(ResumeRequest(folder / "with"), ALONE, StopRequest()) as session:
        store = session.inputs.validation
        assert store is not None
        lengths = sorted(len(Prompt.of(store[i]).prompt_ids) for i in range(len(store)))
        session.state.loss_module.model.config.max_position_embeddings = lengths[0] + room
        expected = min(2, sum(length < lengths[0] + room for length in lengths))
        show_samples(session, tracker)
    assert len(tracker.events) == expected >= room


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data__val_fraction": 0.0}, "the data has no validation part"),
        ({"data__train_on": "all"}, "because train_on = all trains on the prompts too"),
    ],
)
def test_a_run_that_can_not_have_samples_gets_one_warning(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    run = train(tmp_path, "run", {"tracking__samples": 2, "train__max_steps": 2} | settings)
    warnings = [line["message"] for line in events_named(run, "warning")]
    assert [message in warning for warning in warnings].count(True) == 1
    assert "sample" not in events_of(run)


@pytest.mark.parametrize(("strategy", "num_samples"), [("ddp", 4), ("fsdp", 0)])
def test_on_two_ranks_rank_0_answers_or_warns(
    tmp_path: Path, strategy: str, num_samples: int
) -> None:
    settings = {"train__strategy": strategy, "tracking__samples": 2, "train__max_steps": 1}
    run_ranks(2, train, tmp_path, "run", settings)
    assert len(events_named(tmp_path / "run", "sample")) == num_samples
    warnings = [line["message"] for line in events_named(tmp_path / "run", "warning")]
    assert any("no samples under fsdp" in text for text in warnings) == (strategy == "fsdp")


def test_a_prompt_ends_where_the_first_trained_turn_begins() -> None:
    ids = np.arange(10, dtype=np.int32)
    mask = np.array([0, 0, 0, 1, 1, 0, 0, 1, 1, 1], dtype=np.bool_)
    assert Prompt.of(TokenizedExample(ids, mask)) == Prompt([0, 1, 2], [3, 4])
    mask[:] = [0, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    assert Prompt.of(TokenizedExample(ids, mask)) == Prompt([0], list(range(1, 10)))
