"""Downsample long curves: for each bucket of steps, the lowest, mean and highest value."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

MAX_BUCKETS = 300

Numbers = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Bucket:
    """Neighbouring steps, and the lowest, mean and highest of their values."""

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
    """About `max_buckets` buckets or fewer, in stretches that have no gap.

    A gap is a step that is missing or has no finite value; no line is drawn across it.
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
    """An exponential mean, wider in longer runs. A step without a finite value gets none."""
    weight = 1 / max(5.0, min(100.0, len(values) / 25))
    result, total, weights = np.full(len(values), np.nan), 0.0, 0.0
    for place, value in enumerate(values.tolist()):
        if np.isfinite(value):
            total = (1 - weight) * total + weight * value
            weights = (1 - weight) * weights + weight
            result[place] = total / weights  # so that the beginning is not drawn to 0
    return result
