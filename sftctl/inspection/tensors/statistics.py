"""Statistics of every tensor. The memory that they need does not depend on the tensor's size."""

from dataclasses import dataclass, replace

import numpy as np

from sftctl.checkpoint.tensor_index import StoredTensor
from sftctl.errors import CorruptCheckpoint
from sftctl.inspection.inspection import Inspection
from sftctl.inspection.tensors.budget import left_out, same_numbers
from sftctl.inspection.tensors.read import STRETCH, Numbers, located, stretches

NUM_BINS = 16


@dataclass(frozen=True, slots=True)
class TensorStatistics:
    """The statistics of one tensor.

    Only `num_nan` and `num_inf` count numbers that are not finite.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    norm: float | None = None  # the L2 norm
    mean: float | None = None
    std: float | None = None  # of the population: divided by n, not n - 1
    min: float | None = None
    max: float | None = None
    num_nan: int | None = None
    num_inf: int | None = None
    histogram: tuple[int, ...] | None = None  # counts in NUM_BINS equal bins from min to max
    error: str | None = None  # why the tensor could not be read


def tensor_statistics(inspection: Inspection, stretch: int = STRETCH) -> list[TensorStatistics]:
    """The statistics of every tensor, sorted by name. `stretch` elements are read at once.

    A tensor with at most `stretch` elements is read once, a larger tensor twice. A tensor with
    several names is not read again for each name.
    """
    reasons = left_out(inspection.tensors, inspection.num_bytes)
    known: dict[object, TensorStatistics] = {}
    found = []
    for name, tensor in sorted(inspection.tensors.items()):
        if name in reasons:
            found.append(TensorStatistics(name, tensor.dtype, tensor.shape, error=reasons[name]))
            continue
        key = same_numbers(tensor)
        if key not in known:
            known[key] = _statistics(name, tensor, stretch)
        found.append(replace(known[key], name=name, shape=tensor.shape))
    return found


def _statistics(name: str, tensor: StoredTensor, stretch: int) -> TensorStatistics:
    try:
        return _count_and_measure(name, tensor, stretch)
    except (CorruptCheckpoint, OSError, ValueError) as problem:
        return TensorStatistics(name, tensor.dtype, tensor.shape, error=str(problem))


def _count_and_measure(name: str, tensor: StoredTensor, stretch: int) -> TensorStatistics:
    count = num_nan = num_inf = 0
    total = squares = 0.0
    low, high = np.inf, -np.inf
    tensor = located(tensor)
    read_once = list(stretches(tensor, stretch)) if tensor.num_elements <= stretch else None
    for values in read_once or stretches(tensor, stretch):
        num_nan += int(np.isnan(values).sum())
        num_inf += int(np.isinf(values).sum())
        finite = _finite(values)
        if len(finite):
            count, total = count + len(finite), total + float(finite.sum())
            squares += float(finite @ finite)
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    found = TensorStatistics(name, tensor.dtype, tensor.shape, num_nan=num_nan, num_inf=num_inf)
    if not count:
        return found
    mean = total / count
    deviations, bins = 0.0, np.zeros(NUM_BINS, np.int64)
    scale = NUM_BINS / (high - low) if high > low else 0.0
    for values in read_once or stretches(tensor, stretch):
        finite = _finite(values)
        away = finite - mean
        deviations += float(away @ away)
        places = np.minimum(((finite - low) * scale).astype(np.int64), NUM_BINS - 1)
        bins += np.bincount(places, minlength=NUM_BINS)
    return replace(
        found,
        norm=squares**0.5,
        mean=mean,
        std=(deviations / count) ** 0.5,
        min=low,
        max=high,
        histogram=tuple(bins.tolist()),
    )


def _finite(values: Numbers) -> Numbers:
    return values[np.isfinite(values)]
