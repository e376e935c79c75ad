"""choosing: the best evaluation, the end of patience, and the checkpoint that becomes final/."""

import math
from dataclasses import replace
from typing import Any

import pytest

from sftctl.config.load import load_config
from sftctl.config.schema import TrainConfig
from sftctl.errors import ConfigError
from sftctl.runs.choosing import (
    end_of_patience,
    final_of,
    is_new_best,
    is_out_of_patience,
    require_validation,
    with_evaluation,
)

NAN = math.nan
# losses from step 0 on, min_delta -> best_step, best, waited after the last
CASES = {
    "only step 0": ([5.0], 0.0, None, 5.0, 0),
    "step 0 is never the best": ([1.0, 3.0], 0.0, 1, 3.0, 0),
    "the smallest": ([9.0, 4.0, 2.0, 3.0], 0.0, 2, 2.0, 1),
    "of equal ones the first": ([9.0, 4.0, 4.0, 4.0], 0.0, 1, 4.0, 2),
    "a bad start": ([9.0, NAN, 4.0], 0.0, 2, 4.0, 0),
    "a bad step 0": ([NAN, 4.0, 5.0], 0.0, 1, 4.0, 1),
    "a bad end": ([9.0, 4.0, NAN], 0.0, 1, 4.0, 1),
    "infinite": ([9.0, 4.0, math.inf], 0.0, 1, 4.0, 1),
    "too little better": ([9.0, 4.0, 3.95, 3.93], 0.1, 3, 3.93, 2),
    "slowly better": ([9.0, 4.0, 3.95, 3.85], 0.1, 3, 3.85, 0),
}


def after(losses: list[float], min_delta: float) -> dict[str, Any]:
    seen: dict[str, Any] | None = None
    for step, loss in enumerate(losses):
        seen = with_evaluation(seen, step, loss, min_delta)
    assert seen is not None
    return seen


@pytest.mark.parametrize(("losses", "delta", "step", "best", "waited"), CASES.values(), ids=CASES)
def test_the_best_is_the_first_of_the_smallest_losses(
    losses: list[float], delta: float, step: int | None, best: float, waited: int
) -> None:
    seen = after(losses, delta)
    assert (seen.get("best_step"), seen["best"], seen.get("waited", 0)) == (step, best, waited)
    assert (seen["first"], seen["step"]) == (pytest.approx(losses[0], nan_ok=True), len(losses) - 1)
    assert is_new_best(seen, len(losses) - 1) == (step == len(losses) - 1)


def test_patience_counts_evaluations_without_a_better_one() -> None:
    train = TrainConfig(eval_interval=1, patience=2)
    losses = [9.0, 4.0, 5.0, 6.0]
    assert [is_out_of_patience(train, after(losses[:n], 0.0)) for n in (1, 2, 3, 4)] == [
        False, False, False, True
    ]  # fmt: skip
    assert not is_out_of_patience(train, None)
    assert not is_out_of_patience(replace(train, patience=3), after([9, 4, 5, 6], 0.0))
    assert not is_out_of_patience(replace(train, patience=0), after([9, 4, 5, 6], 0.0))
    assert end_of_patience(after([9, 4, 5, 6], 0.0)) == (
        "train.patience: no better validation loss in 2 evaluations; the best is 4.0000 at step 1"
    )
    bad = after([NAN, NAN, NAN], 0.0) | {"best": None}  # as JSON has it
    assert end_of_patience(bad).endswith("in 1 evaluation; the best is nan at step 1")


def test_a_run_of_an_earlier_version_keeps_its_best_loss() -> None:
    old = {"first": 9.0, "best": 2.0, "last": 3.0, "step": 40}
    seen = with_evaluation(old, 50, 2.5, 0.0)
    assert (seen["best"], seen.get("best_step"), seen["waited"]) == (2.0, None, 1)
    seen = with_evaluation(seen, 60, 1.5, 0.0)
    assert (seen["best"], seen["best_step"], seen["waited"]) == (1.5, 60, 0)
    assert final_of(TrainConfig()) == "last"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.patience", 3),
        ("train.final", "best"),
        ("checkpoint.keep_best", 2),
        ("evaluation.best", "token_accuracy"),
    ],
)
def test_choosing_without_a_validation_set_is_refused(key: str, value: object) -> None:
    config = load_config(None, {key: value, "train.eval_interval": 10})
    require_validation(config, has_validation=True)
    with pytest.raises(ConfigError) as raised:
        require_validation(config, has_validation=False)
    assert raised.value.message == (
        f"{key}: {value}, but the data has no validation set: nothing is evaluated"
    )
    assert raised.value.hint is not None and "--val-fraction" in raised.value.hint


def test_patience_without_an_interval_is_refused() -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(None, {"train.patience": 3})
    assert raised.value.message == (
        "train.patience: 3, but train.eval_interval is 0: nothing is evaluated before the last step"
    )
