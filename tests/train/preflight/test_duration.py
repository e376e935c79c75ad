"""The estimate of how long a run takes: what is tried, and what it is multiplied by."""

from pathlib import Path
from typing import Any

import pytest

from sftctl.metrics import StepMetrics
from sftctl.train.engine.step import train_step
from sftctl.train.preflight import duration
from sftctl.train.preflight.dry_run import RunPlan, plan_run
from tests.toys.runs import toy_config


def planned(folder: Path, **changes: Any) -> RunPlan:
    return plan_run(toy_config(folder, **changes))


def test_tried_seconds_are_multiplied_by_what_is_trained_and_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duration, "_tried_token_s", lambda *_: 0.5)
    one = planned(tmp_path, train__epochs=1, train__max_steps=None)
    three = planned(tmp_path, train__epochs=3, train__max_steps=None)
    assert one.time_s is not None and three.time_s is not None
    per_epoch = 0.5 * one.num_tokens
    assert three.time_s - one.time_s == pytest.approx(2 * per_epoch)
    assert one.time_s >= per_epoch  # and the evaluations before the first step and after the last


def test_a_few_steps_of_a_small_model_are_tried_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[float] = []

    def counted(*given: Any) -> StepMetrics:
        metrics = train_step(*given)
        steps.append(metrics.learning_rate)
        return metrics

    monkeypatch.setattr(duration, "train_step", counted)
    assert planned(tmp_path).time_s is not None
    assert 2 <= len(steps) <= 8 and set(steps) == {0.0}  # no weight changes: nothing can diverge
    monkeypatch.setattr(duration, "_SMALL", 0)
    before = len(steps)
    assert planned(tmp_path).time_s is not None
    assert len(steps) == before
