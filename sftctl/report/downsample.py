"""Downsample long curves to buckets of steps with their lowest, mean and highest value."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

MAX_BUCKETS = 300

Numbers = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Bucket:
    """Consecutive steps, with the lowest, mean and highest of their values."""

    first_step: int
    last_step: int
    low: float
    mean: float
    high: float

    @property
    def middle(self) -> float:
        return (self.first_step + self.last_step) / 2


def downsampled(
    steps: npt.NDArray[np.integer[Any]], values: Numbers, max_buckets: int = MAX_BUCKETS
) -> list[list[Bucket]]:
    """Reduce a curve to about `max_buckets` buckets.

    Returns lists of buckets. Each gap begins a new list, so that no line is drawn across a gap. A
    gap is a step that is missing, or whose value is not finite.
    """
    is_finite = np.isfinite(values)
    steps, values = steps[is_finite], values[is_finite].astype(np.float64)
    if not len(steps):
        return []
    width = -(-int(steps[-1] - steps[0] + 1) // max_buckets)
    number = (steps - steps[0]) // width
    gaps = np.flatnonzero(np.diff(steps) != 1) + 1
    edges = np.union1d(np.flatnonzero(np.diff(number)) + 1, gaps)
    starts = np.concatenate([[0], edges]).astype(np.intp)
    ends = np.concatenate([edges, [len(steps)]]).astype(np.intp)
    lows, highs = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
    means = np.add.reduceat(values, starts) / (ends - starts)
    stretches: list[list[Bucket]] = [[]]
    after_gap = {int(gap) for gap in gaps}
    for i, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        if start in after_gap:
            stretches.append([])
        first, last = int(steps[start]), int(steps[end - 1])
        bucket = Bucket(first, last, float(lows[i]), float(means[i]), float(highs[i]))
        stretches[-1].append(bucket)
    return stretches


def smoothed(values: Numbers) -> Numbers:
    """A moving average: for each step, the mean of the steps around it. NaN stays NaN.

    Longer curves use more steps for a mean. Near the start, fewer steps are used, the same number
    before and after each step. So the curve is not delayed where the loss falls fast.
    """
    half = max(2, min(50, len(values) // 40))
    known = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    places = np.arange(len(values))
    reach = np.minimum(places, half)
    low, high = places - reach, np.minimum(places + reach + 1, len(values))
    means = (sums[high] - sums[low]) / np.maximum(counts[high] - counts[low], 1)
    return np.where(known, means, np.nan)
