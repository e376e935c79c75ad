"""A downsampled curve keeps its extremes and is not connected across gaps."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftctl.report.downsample import Bucket, downsampled
from sftctl.report.plot import ticks

VALUES = st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")), max_size=80)


@given(VALUES, st.integers(1, 30))
def test_buckets_hold_every_value_once_between_lowest_and_highest(
    values: list[float], most: int
) -> None:
    steps, array = np.arange(1, len(values) + 1), np.array(values, dtype=np.float64)
    buckets = [bucket for stretch in downsampled(steps, array, most) for bucket in stretch]
    seen = []
    for bucket in buckets:
        inside = array[bucket.first_step - 1 : bucket.last_step]
        assert (bucket.low, bucket.high) == (inside.min(), inside.max())
        assert bucket.mean == pytest.approx(inside.mean(), abs=1e-6)
        seen += list(range(bucket.first_step, bucket.last_step + 1))
    assert seen == [step for step, value in enumerate(values, 1) if np.isfinite(value)]


def test_a_short_curve_is_left_as_it_is() -> None:
    steps, values = np.array([1, 2, 3]), np.array([3.0, 1.0, 2.0])
    expected = [Bucket(1, 1, 3, 3, 3), Bucket(2, 2, 1, 1, 1), Bucket(3, 3, 2, 2, 2)]
    assert downsampled(steps, values) == [expected]


def test_a_long_curve_becomes_few_buckets_and_keeps_its_spike() -> None:
    values = np.ones(100_000)
    values[77_777] = 50.0
    (stretch,) = downsampled(np.arange(1, 100_001), values, 300)
    assert 280 <= len(stretch) <= 300
    assert max(bucket.high for bucket in stretch) == 50.0


def test_missing_steps_cut_the_curve() -> None:
    steps = np.array([1, 2, 3, 7, 8])
    first, second = downsampled(steps, np.arange(5.0))
    assert [bucket.first_step for bucket in first] == [1, 2, 3]
    assert [bucket.first_step for bucket in second] == [7, 8]


def test_without_a_finite_value_there_is_no_stretch() -> None:
    assert downsampled(np.array([], dtype=np.int64), np.array([])) == []
    assert downsampled(np.array([1, 2]), np.array([np.nan, np.inf])) == []


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0, 0.25, 0.5, 0.75, 1.0]),
        (0.7, 4.4, [1, 2, 3, 4]),
        (1, 3000, [500, 1000, 1500, 2000, 2500, 3000]),
        (5.0, 5.0, [5.0]),
    ],
)
def test_ticks_are_round_and_inside(low: float, high: float, expected: list[float]) -> None:
    about = 5 if high > 100 else 4
    assert ticks(low, high, about) == pytest.approx(expected)
