"""The learning rate of every step, for each schedule."""

import math

import pytest

from sftctl.config.optim import OptimConfig
from sftctl.config.schedule import get_lr


def minimind_lr(step: int, total: int, lr: float) -> float:
    """MiniMind's get_lr, as its trainer has it."""
    return lr * (0.1 + 0.45 * (1 + math.cos(math.pi * step / total)))


@pytest.mark.parametrize("total", [1, 2, 7, 1000])
def test_without_warm_up_every_step_takes_the_rate_of_minimind(total: int) -> None:
    optim = OptimConfig(learning_rate=5e-4)
    for step in range(1, total + 1):
        assert get_lr(step, total, optim) == pytest.approx(
            minimind_lr(step, total, 5e-4), rel=1e-12
        )


@pytest.mark.parametrize("warmup_steps", [0, 1, 10, 99])
def test_the_last_step_takes_a_tenth_of_the_peak(warmup_steps: int) -> None:
    optim = OptimConfig(learning_rate=1e-3, warmup_steps=warmup_steps)
    assert get_lr(100, 100, optim) == pytest.approx(1e-4)


def test_the_floor_is_a_setting() -> None:
    assert get_lr(9, 9, OptimConfig(learning_rate=2.0, min_lr_ratio=0.5)) == pytest.approx(1.0)
    assert get_lr(9, 9, OptimConfig(learning_rate=2.0, min_lr_ratio=0.0)) == pytest.approx(0.0)


def test_a_warm_up_is_linear_and_goes_into_the_cosine_without_a_jump() -> None:
    optim = OptimConfig(learning_rate=1.0, warmup_steps=10)
    rates = [get_lr(step, 110, optim) for step in range(1, 111)]
    assert rates[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert max(rates) == rates[9] == 1.0
    assert rates[9:] == sorted(rates[9:], reverse=True)
    falls = [before - after for before, after in zip(rates[9:], rates[10:], strict=False)]
    assert max(falls) < 0.9 * math.pi / 2 / 100 * 1.01  # the cosine's steepest
    assert rates[10:] == pytest.approx([minimind_lr(step, 100, 1.0) for step in range(1, 101)])


@pytest.mark.parametrize("warmup_steps", [5, 50])
def test_a_run_shorter_than_its_warm_up_stays_on_the_line(warmup_steps: int) -> None:
    optim = OptimConfig(learning_rate=1.0, warmup_steps=warmup_steps)
    rates = [get_lr(step, 5, optim) for step in range(1, 6)]
    assert rates == pytest.approx([step / warmup_steps for step in range(1, 6)])


def test_a_line_falls_by_the_same_amount_every_step() -> None:
    optim = OptimConfig(learning_rate=1.0, schedule="linear", warmup_steps=10)
    rates = [get_lr(step, 110, optim) for step in range(1, 112)]
    assert rates[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert rates[9:110] == pytest.approx([1 - 0.009 * step for step in range(101)])
    assert rates[110] == pytest.approx(0.1)


def test_a_constant_rate_is_the_peak_after_the_warm_up() -> None:
    optim = OptimConfig(learning_rate=3.0, schedule="constant", warmup_steps=2)
    assert [get_lr(step, 5, optim) for step in range(1, 7)] == [1.5, 3.0, 3.0, 3.0, 3.0, 3.0]


def test_beyond_the_end_the_rate_stays_at_the_floor() -> None:
    assert get_lr(12, 10, OptimConfig(learning_rate=1.0)) == pytest.approx(0.1)
