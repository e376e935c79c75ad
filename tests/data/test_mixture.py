"""Mixtures: how often an epoch trains each example of each source, and the source of an example."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftctl.data.mixture import MixedSource, Mixture
from sftctl.data.plan import examples_digest, plan_epoch, plan_mixture


def mixture(*parts: tuple[int, float]) -> Mixture:
    """Sources of so many examples, with these weights."""
    starts = np.cumsum([0, *(count for count, _ in parts)]).tolist()
    named = zip(parts, starts, strict=False)
    return Mixture(tuple(MixedSource(f"s{i}", i, n, w) for (n, w), i in named))


def order_of(mixed: Mixture, seed: int = 0, epoch: int = 0) -> list[int]:
    order: list[int] = plan_mixture(mixed, seed, epoch, 4).order.tolist()
    return order


SOURCES = st.lists(
    st.tuples(st.integers(0, 30), st.floats(0, 5, allow_nan=False)), min_size=1, max_size=4
)


@settings(deadline=None, max_examples=60)
@given(SOURCES, st.integers(0, 5), st.integers(0, 9))
def test_an_epoch_trains_round_of_weight_times_examples(
    parts: list[tuple[int, float]], seed: int, epoch: int
) -> None:
    """Each example floor or ceil of its mean number of times, the same number in every epoch."""
    mixed = mixture(*parts)
    times = Counter(order_of(mixed, seed, epoch))
    for source in mixed.sources:
        own = [times[source.start + i] for i in range(source.num_examples)]
        assert sum(own) == source.num_planned == round(source.weight * source.num_examples)
        assert not own or max(own) - min(own) <= 1
    assert sum(times.values()) == mixed.num_planned


@pytest.mark.parametrize(("weight", "per_epoch"), [(0.3, 3), (0.5, 5), (0.25, 2), (1.7, 7)])
def test_each_epoch_takes_other_examples_until_all_were_used(weight: float, per_epoch: int) -> None:
    most = 1 if weight < 1 else 2
    counts = [Counter(order_of(mixture((10, weight)), epoch=epoch)) for epoch in range(20)]
    extra = [{i for i, n in each.items() if n == most} for each in counts]
    assert {len(part) for part in extra} == {per_epoch}
    for first in range(10):
        until_all = extra[first : first + 10 // per_epoch]
        assert len(set().union(*until_all)) == per_epoch * len(until_all)  # none twice
    times = Counter(i for part in extra for i in part).values()
    assert max(times) - min(times) <= 1


def test_weights_of_1_are_the_plan_without_a_mixture() -> None:
    for seed, epoch in [(0, 0), (3, 1), (9, 7)]:
        plain = plan_epoch([1] * 37, seed, epoch, 4)
        mixed = plan_mixture(mixture((20, 1.0), (17, 1.0)), seed, epoch, 4)
        assert mixed.order.tolist() == plain.order.tolist()
        assert len(mixed) == len(plain)


def test_the_plan_can_not_change_unnoticed() -> None:
    """Other numbers would change the runs of old configurations."""
    assert examples_digest(plan_epoch([1] * 22, 0, 0, 4)[0]) == 3255848650178273
    mixed = mixture((10, 0.3), (4, 2.5))
    assert [order_of(mixed, epoch=epoch) for epoch in (0, 1)] == [
        [13, 10, 1, 12, 10, 11, 12, 2, 10, 11, 12, 5, 13],
        [12, 12, 13, 13, 7, 13, 11, 11, 0, 11, 6, 10, 10],
    ]


def test_copies_are_spread_over_the_epoch() -> None:
    order = order_of(mixture((500, 2.0)))
    places: dict[int, list[int]] = {}
    for place, example in enumerate(order):
        places.setdefault(example, []).append(place)
    distances = [b - a for each in places.values() for a, b in pairwise(each)]
    assert 250 < np.mean(distances) < 420  # a third of the epoch for independent places


def test_the_source_of_an_example() -> None:
    mixed = mixture((3, 1), (2, 0.5), (4, 2))
    assert [mixed.source_of(i) for i in range(9)] == [0, 0, 0, 1, 1, 2, 2, 2, 2]
