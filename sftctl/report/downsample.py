"""Long curves made short, honestly: of each bucket of steps the lowest, the mean, the highest."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

MOST_BUCKETS = 300

Numbers = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Bucket:
    """Neighbouring steps, and what their values are between."""

    first_step: int
    last_step: int
    low: float
    mean: float
    high: float

    @property
    def middle(self) -> float:
        return (self.first_step + self.last_step) / 2


def downsampled(
    steps: npt.NDArray[np.integer[Any]], values: Numbers, most: int = MOST_BUCKETS
) -> list[list[Bucket]]:
    """At most about `most` buckets, in stretches without a hole.

    A hole is a step that is missing or has no finite value: no line is drawn across it.
    """
    there = np.isfinite(values)
    steps, values = steps[there], values[there].astype(np.float64)
    if not len(steps):
        return []
    width = -(-int(steps[-1] - steps[0] + 1) // most)
    number = (steps - steps[0]) // width
    holes = np.flatnonzero(np.diff(steps) != 1) + 1
    edges = np.union1d(np.flatnonzero(np.diff(number)) + 1, holes)
    starts = np.concatenate([[0], edges]).astype(np.intp)
    ends = np.concatenate([edges, [len(steps)]]).astype(np.intp)
    lows, highs = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
    means = np.add.reduceat(values, starts) / (ends - starts)
    stretches: list[list[Bucket]] = [[]]
    after_a_hole = {int(hole) for hole in holes}
    for i, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        if start in after_a_hole:
            stretches.append([])
        first, last = int(steps[start]), int(steps[end - 1])
        bucket = Bucket(first, last, float(lows[i]), float(means[i]), float(highs[i]))
        stretches[-1].append(bucket)
    return stretches
