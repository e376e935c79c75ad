"""Which examples train at which step, and how a step is cut: pure functions of integers.

The order of an epoch is a permutation by hash: example i has the key
`hash64(hash64(hash64(seed) + epoch) + i)` and the epoch runs in the order of the keys. `hash64` is
the finalizer of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators,
OOPSLA 2014). No library's random stream is involved, so no upgrade can change the order.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

ORDER_VERSION = 2
"""Raise it when the same (lengths, seed, epoch) would give another order or another cut."""

Indices = npt.NDArray[np.int64]

_FEW = 48  # up to this many candidates, a Python list is faster than numpy
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def hash64(values: npt.ArrayLike) -> npt.NDArray[np.uint64]:
    """SplitMix64 of each value, modulo 2^64."""
    with np.errstate(over="ignore"):
        z = np.asarray(values).astype(np.uint64) + _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def hash_of(*parts: int) -> int:
    """One 64-bit number from several, such as the seed of (run seed, step, micro-batch)."""
    result = 0
    for part in parts:
        result = int(hash64((result + part) % (1 << 64)))
    return result


def examples_digest(examples: npt.ArrayLike) -> int:
    """Sum of `hash64` over store indices, modulo 2^64. It does not depend on their order."""
    return int(np.sum(hash64(examples), dtype=np.uint64))


@dataclass(frozen=True, slots=True)
class DataPosition:
    """A run's progress: `step` steps of `epoch` have been trained."""

    epoch: int = 0
    step: int = 0

    def advanced(self, steps_per_epoch: int) -> "DataPosition":
        """The position one step later. The end of an epoch is the start of the next."""
        if self.step + 1 < steps_per_epoch:
            return DataPosition(self.epoch, self.step + 1)
        return DataPosition(self.epoch + 1, 0)


@dataclass(frozen=True, slots=True)
class EpochPlan:
    """The examples of every step of an epoch. The last step can be smaller."""

    order: Indices  # (N,)
    global_batch_size: int

    def __len__(self) -> int:
        """Steps of the epoch: ceil(examples / global_batch_size)."""
        return steps_per_epoch(len(self.order), self.global_batch_size)

    def __getitem__(self, step: int) -> Indices:
        """The store indices of one step."""
        if not 0 <= step < len(self):
            raise IndexError(step)
        start = step * self.global_batch_size
        return self.order[start : start + self.global_batch_size]


def steps_per_epoch(num_examples: int, global_batch_size: int) -> int:
    """The last step holds the rest: no example is dropped."""
    return math.ceil(num_examples / global_batch_size)


def plan_epoch(
    lengths: Sequence[int] | npt.NDArray[np.integer],
    seed: int,
    epoch: int,
    global_batch_size: int,
) -> EpochPlan:
    """The plan of one epoch, equal on every rank. Only the number of `lengths` matters here."""
    with np.errstate(over="ignore"):
        start = np.uint64(hash_of(seed, epoch))
        keys = hash64(np.arange(len(lengths), dtype=np.uint64) + start)
    return EpochPlan(np.argsort(keys, kind="stable"), global_batch_size)


class SkipBatchSampler:
    """The remaining steps of a plan, and their exact number.

    MiniMind's sampler of this name draws and discards the skipped steps. This one slices the plan.
    """

    def __init__(self, plan: EpochPlan, start_step: int = 0) -> None:
        self.plan = plan
        self.start_step = start_step

    def __len__(self) -> int:
        return max(0, len(self.plan) - self.start_step)

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start_step, len(self.plan)):
            yield self.plan[step].tolist()


@dataclass(frozen=True, slots=True)
class Piece:
    """Examples that go through the model together, as places in the step, longest first."""

    places: tuple[int, ...]
    cost: int  # tokens to process, padding included, and the fixed cost of a pass


def cut_step(
    lengths: Sequence[int] | npt.NDArray[np.integer], micro_batch_tokens: int, num_ranks: int
) -> list[Piece]:
    """Cut one step into pieces of examples of similar length that fit the token budget.

    The examples are sorted by length and cut where the total cost is lowest: a piece costs
    rows × longest row, plus `micro_batch_tokens / 64` for the fixed work of a pass. Dynamic
    programming finds the minimum exactly. For several ranks this is done with several limits per
    piece, and the cut whose busiest rank has the least work wins. An example longer than the budget
    is a piece of its own.
    """
    sizes: Indices = np.asarray(lengths, dtype=np.int64)
    places = np.argsort(-sizes, kind="stable")
    fixed = max(1, micro_batch_tokens // 64)
    limits = _limits(micro_batch_tokens, int(sizes.sum()), num_ranks)
    cuts = [_cheapest_cut(sizes[places], limit, fixed) for limit in limits]
    best = cuts[0]
    if len(cuts) > 1:
        best = min(cuts, key=lambda cut: _busiest([cost for _, _, cost in cut], num_ranks))
    return [Piece(tuple(places[start:stop].tolist()), cost) for start, stop, cost in best]


def _limits(micro_batch_tokens: int, num_tokens: int, num_ranks: int) -> list[int]:
    """Limits per piece to try: the budget, and for several ranks also parts of a rank's share."""
    if num_ranks == 1:
        return [micro_batch_tokens]
    share = num_tokens / num_ranks
    tried = [1.3 * share * 0.9**k for k in range(16)] + [share / k for k in (4, 6, 8)]
    fitting = [max(1, min(micro_batch_tokens, int(limit))) for limit in tried]
    return list(dict.fromkeys([micro_batch_tokens, *fitting]))


def _cheapest_cut(lengths: Indices, limit: int, fixed: int) -> list[tuple[int, int, int]]:
    """(start, stop, cost) of each piece of the cheapest cut. `lengths` are in descending order."""
    sizes = lengths.tolist()
    count = len(sizes)
    cost_from = np.zeros(count + 1, dtype=np.int64)  # the lowest cost of lengths[i:]
    costs = [0] * (count + 1)  # the same as a list
    rows_at = [0] * count  # rows of the first piece of lengths[i:]
    for i in range(count - 1, -1, -1):
        most = min(count - i, max(1, limit // max(1, sizes[i])))
        if most <= _FEW:
            totals = [sizes[i] * k + costs[i + k] for k in range(1, most + 1)]
            least = min(totals)
            rows_at[i] = totals.index(least) + 1
        else:
            sums = lengths[i] * np.arange(1, most + 1) + cost_from[i + 1 : i + most + 1]
            rows_at[i] = int(sums.argmin()) + 1
            least = int(sums[rows_at[i] - 1])
        cost_from[i] = costs[i] = least + fixed
    cut, start = [], 0
    while start < count:
        stop = start + rows_at[start]
        cut.append((start, stop, (stop - start) * sizes[start] + fixed))
        start = stop
    return cut


def _busiest(costs: Sequence[int], num_ranks: int) -> int:
    return max(sum(costs[i] for i in rank) for rank in deal(costs, num_ranks))


def deal(costs: Sequence[int], num_ranks: int) -> list[list[int]]:
    """Give each piece, most expensive first, to the rank with the least work (Graham 1969, LPT).

    Returns the numbers of each rank's pieces, ascending. A rank can get none.
    """
    if num_ranks == 1:
        return [list(range(len(costs)))]
    hands: list[list[int]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    for piece in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        rank = loads.index(min(loads))
        hands[rank].append(piece)
        loads[rank] += costs[piece]
    return [sorted(hand) for hand in hands]


def deal_in_rounds(costs: Sequence[int], num_ranks: int) -> list[list[int]]:
    """Give the pieces, most expensive first, to the ranks in turn.

    This is for ranks that wait for each other in every piece: the pieces of a round have similar
    costs. Only in the last round can a rank get none; the first rank always gets one.
    """
    by_cost = sorted(range(len(costs)), key=lambda i: (-costs[i], i))
    return [by_cost[rank::num_ranks] for rank in range(num_ranks)]
