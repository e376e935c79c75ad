"""Which examples each step trains, and how a step is cut into pieces. Only pure functions.

Example i has the key `hash64(hash64(hash64(seed) + epoch) + i)`. An epoch trains the examples in
the order of their keys. `hash64` is the finalizer of SplitMix64 (Steele, Lea, Flood: Fast
Splittable Pseudorandom Number Generators, OOPSLA 2014). We use no random generator of a library, so
an upgrade of a library can't change the order.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heapreplace

import numpy as np
import numpy.typing as npt

from sftctl.data.mixture import MixedSource, Mixture

ORDER_VERSION = 3
"""Increase this number when a change of the code changes the order or the cut of examples."""

Indices = npt.NDArray[np.int64]

_TURNS = 0x7475726E73  # a constant that makes this permutation differ from an epoch's order
_BLOCK = 1 << 16  # keys computed at a time, few enough for the processor's cache
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FACTORS = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_FIRST, _SECOND = (np.uint64(factor) for factor in _FACTORS)
_FIRST_INVERSE, _SECOND_INVERSE = (np.uint64(pow(factor, -1, 1 << 64)) for factor in _FACTORS)


def hash64(values: npt.ArrayLike) -> npt.NDArray[np.uint64]:
    """SplitMix64 of each value, modulo 2^64."""
    with np.errstate(over="ignore"):
        z = np.asarray(values).astype(np.uint64) + _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * _FIRST
        z = (z ^ (z >> np.uint64(27))) * _SECOND
        return z ^ (z >> np.uint64(31))


def unhash64(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The inverse of `hash64`, which is a permutation of the numbers below 2^64."""
    with np.errstate(over="ignore"):
        z = (hashes ^ (hashes >> np.uint64(31)) ^ (hashes >> np.uint64(62))) * _SECOND_INVERSE
        z = (z ^ (z >> np.uint64(27)) ^ (z >> np.uint64(54))) * _FIRST_INVERSE
        values: npt.NDArray[np.uint64] = z ^ (z >> np.uint64(30)) ^ (z >> np.uint64(60))
        return values - _GOLDEN


def hash_of(*parts: int) -> int:
    """A 64-bit hash of several integers, for example of (seed of the run, step, micro-batch)."""
    result = 0
    for part in parts:
        result = int(hash64((result + part) % (1 << 64)))
    return result


def examples_digest(examples: npt.ArrayLike) -> int:
    """Sum of `hash64` over store indices, modulo 2^64. The order of the indices does not matter."""
    return int(np.sum(hash64(examples), dtype=np.uint64))


@dataclass(frozen=True, slots=True)
class DataPosition:
    """The progress of a run: `step` steps of epoch number `epoch` were trained."""

    epoch: int = 0
    step: int = 0

    def advanced(self, steps_per_epoch: int) -> "DataPosition":
        """The position one step later. After the last step, this is the start of the next epoch."""
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
    """The number of steps. The last step has the remaining examples; no example is dropped."""
    return math.ceil(num_examples / global_batch_size)


def plan_epoch(
    lengths: Sequence[int] | npt.NDArray[np.integer],
    seed: int,
    epoch: int,
    global_batch_size: int,
) -> EpochPlan:
    """The plan of one epoch. It is equal on every rank. Only the number of `lengths` is used.

    Keys are unique, and `unhash64` computes the example from its key. So only the keys are sorted,
    in place. To sort examples by their keys would need four times the memory.
    """
    start = np.uint64(hash_of(seed, epoch))
    keys = np.empty(len(lengths), dtype=np.uint64)
    blocks = [slice(first, first + _BLOCK) for first in range(0, len(keys), _BLOCK)]
    with np.errstate(over="ignore"):
        for block in blocks:
            examples = np.arange(block.start, min(block.stop, len(keys)), dtype=np.uint64)
            keys[block] = hash64(examples + start)
        keys.sort()
        for block in blocks:
            keys[block] = unhash64(keys[block]) - start
    return EpochPlan(keys.view(np.int64), global_batch_size)


def plan_mixture(mixture: Mixture, seed: int, epoch: int, global_batch_size: int) -> EpochPlan:
    """The plan of one epoch of a mixture. It is equal on every rank.

    A source has N examples, and an epoch trains k = `num_planned` examples of this source. Each
    example is trained k // N times, and k % N examples are trained once more. These k % N examples
    are taken from a fixed permutation of the source. Each epoch continues in the permutation where
    the previous epoch stopped. So over many epochs, all examples of a source are trained equally
    often.

    The first copy of example i has the same key as in `plan_epoch`. Copy c > 0 has the key
    `hash64(hash_of(seed, epoch, c) + i)`. So if all weights are 1, the plan equals `plan_epoch`.
    """
    examples, keys = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.uint64)]
    for source in mixture.sources:
        for copy, part in enumerate(_copies(source, seed, epoch)):
            examples.append(part)
            keys.append(_keys(part, hash_of(seed, epoch, copy) if copy else hash_of(seed, epoch)))
    order = np.argsort(np.concatenate(keys), kind="stable")
    return EpochPlan(np.concatenate(examples)[order], global_batch_size)


def times_in_epoch(mixture: Mixture, seed: int, epoch: int) -> Indices:
    """How often `plan_mixture` trains each example in this epoch: (N,)."""
    counts = [np.zeros(source.num_examples, dtype=np.int64) for source in mixture.sources]
    for source, times in zip(mixture.sources, counts, strict=True):
        for part in _copies(source, seed, epoch):
            times[part - source.start] += 1
    return np.concatenate(counts)


def _copies(source: MixedSource, seed: int, epoch: int) -> Iterator[Indices]:
    """For each copy: its examples, ascending. Only the last copy may lack examples."""
    if not source.num_examples:
        return
    every = np.arange(source.start, source.start + source.num_examples, dtype=np.int64)
    full, rest = divmod(source.num_planned, source.num_examples)
    for _ in range(full):
        yield every
    if rest:
        turn = every[np.argsort(_keys(every, hash_of(seed, _TURNS)), kind="stable")]
        places = (epoch * rest + np.arange(rest)) % source.num_examples
        yield np.sort(turn[places])


def _keys(examples: Indices, start: int) -> npt.NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        return hash64(examples.astype(np.uint64) + np.uint64(start))


class SkipBatchSampler:
    """The remaining steps of a plan. `len()` is their exact number.

    The name is MiniMind's. MiniMind's sampler draws the skipped steps and discards them. This class
    slices the plan.
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
    """Examples of a step that go through the model in one pass."""

    places: tuple[int, ...]  # indices within the step, longest example first
    cost: int  # number of tokens


def cut_step(
    lengths: Sequence[int] | npt.NDArray[np.integer], micro_batch_tokens: int, num_ranks: int
) -> list[Piece]:
    """Cut one step into `num_ranks` × k pieces of nearly equal size.

    There are fewer pieces if the step has fewer examples.
    The examples are added one by one, longest first, each to the piece with the fewest tokens
    (Graham 1969, LPT). k is the smallest number for which no piece with several examples exceeds
    `micro_batch_tokens`. A longer example is alone in its piece.
    """
    sizes: Indices = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-sizes, kind="stable").tolist()
    longest_first = sizes[order].tolist()
    num_tokens = sum(longest_first)
    rounds = max(1, math.ceil(num_tokens / (num_ranks * micro_batch_tokens)))
    while True:
        bins, loads = _fill_bins(longest_first, num_ranks * rounds)
        if all(
            load <= micro_batch_tokens or len(each) == 1
            for load, each in zip(loads, bins, strict=True)
        ):
            break
        rounds += 1
    return [
        Piece(tuple([order[i] for i in each]), load) for load, each in zip(loads, bins, strict=True)
    ]


def _fill_bins(longest_first: list[int], num_bins: int) -> tuple[list[list[int]], list[int]]:
    """The places in each bin, and the number of tokens in each bin. No bin is empty."""
    bins: list[list[int]] = [[] for _ in range(min(num_bins, len(longest_first)))]
    loads = [0] * len(bins)
    lightest = [(0, i) for i in range(len(bins))]  # a heap of (tokens, bin)
    for place, length in enumerate(longest_first):
        load, i = lightest[0]
        bins[i].append(place)
        loads[i] = load + length
        heapreplace(lightest, (load + length, i))
    return bins, loads


def deal(costs: Sequence[int], num_ranks: int) -> list[list[int]]:
    """Assign each piece, largest first, to the rank with the fewest tokens (Graham 1969, LPT).

    Returns the indices of each rank's pieces, ascending. A rank may get no piece.
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
    """Assign the pieces, largest first, to rank 0, 1, 2, … and again to rank 0, 1, 2, …

    This is for FSDP, where ranks wait for each other in every piece: the pieces of a round have
    similar sizes. In the last round, some ranks may get no piece.
    """
    by_cost = sorted(range(len(costs)), key=lambda i: (-costs[i], i))
    return [by_cost[rank::num_ranks] for rank in range(num_ranks)]
