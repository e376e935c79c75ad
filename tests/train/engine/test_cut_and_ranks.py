"""A step's gradient does not depend on how it is cut or on the number of ranks."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from sftctl.data.loading.loader import LoaderSettings, StepLoader, sum_of_weights
from sftctl.data.loading.microbatch import StepBatch, collate, filler_micro_batch
from sftctl.data.step_shape import StepShape
from sftctl.train.engine.build import build_state
from sftctl.train.engine.step import StepRules, train_step
from sftctl.world import World, start_world
from tests.toys.data import ToyStore
from tests.toys.ranks import run_ranks
from tests.toys.steps import ALONE, STORE, first_gradient, make_config, make_mixture, make_model

SEEDS = tuple(range(8))
CUTS = (1, 2, 5)
MIXTURES = [("ddp", False), ("fsdp", False), ("fsdp", True)]  # strategy, activation checkpointing
Gradients = dict[tuple[int, int], npt.NDArray[np.float32]]  # (seed, pieces) -> gradient


def random_step(seed: int, num_pieces: int, rank: int, num_ranks: int) -> StepBatch:
    """A rank's part of a step of random rows, cut at random into `num_pieces` micro-batches.

    With odd seeds the tokens have weights.
    """
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 40, rng.integers(5, 12)).tolist()
    store = ToyStore(lengths, STORE.vocab_size, seed, has_weights=seed % 2 == 1)
    pieces = np.array_split(rng.permutation(len(store.lengths)), num_pieces)
    mine = [collate(store, tuple(p.tolist()), i) for i, p in enumerate(pieces)][rank::num_ranks]
    num_targets = int(store.target_lengths.sum())
    micro_batches = tuple(mine) or (filler_micro_batch(num_pieces),)
    weights = sum_of_weights(store, range(len(store.lengths)))
    return StepBatch(0, 0, len(store.lengths), num_targets, weights, micro_batches)


def gradients_in(world: World) -> Gradients:
    config, found = make_config(), {}
    for seed in SEEDS:
        for cut in CUTS:
            state = build_state(make_model(), config, world, longest_row=64)
            batch = random_step(seed, cut, world.rank, world.world_size)
            train_step(state, batch, StepRules(config.optim, 0, 10, 10), world, 0.0)
            found[seed, cut] = first_gradient(state).numpy()
    return found


def mixture_losses(world: World, strategy: str, recomputed: bool) -> list[float]:
    """Losses and gradient norms of two steps of a mixture of experts, its auxiliary loss large."""
    config = make_config(strategy=strategy, activation_checkpointing=recomputed)
    state = build_state(make_mixture(), config, world, longest_row=64)
    shape = StepShape(
        seed=0,
        global_batch_size=8,
        micro_batch_tokens=64,
        cut_for_ranks=1,
        rank=world.rank,
        world_size=world.world_size,
        lockstep=state.is_sharded,
    )
    rules = StepRules(config.optim, 0, 10, 10)
    batches = StepLoader(STORE, shape, LoaderSettings()).steps(0)
    metrics = [train_step(state, batch, rules, world, 0.0) for batch in batches]
    return [value for line in metrics for value in (line.loss, line.grad_norm)]


def on_a_rank() -> tuple[Gradients, dict[Any, list[float]]]:
    with start_world("cpu") as world:
        mixtures = {how: mixture_losses(world, *how) for how in MIXTURES}
        return gradients_in(world), mixtures


@pytest.fixture(scope="module")
def two_ranks() -> tuple[Gradients, dict[Any, list[float]]]:
    """What rank 0 of two found."""
    found: tuple[Gradients, dict[Any, list[float]]] = run_ranks(2, on_a_rank)[0]
    return found


@pytest.fixture(scope="module")
def gradients(two_ranks: Any) -> dict[int, Gradients]:
    """Number of ranks -> the gradients found on rank 0."""
    return {1: gradients_in(ALONE), 2: two_ranks[0]}


@pytest.mark.parametrize("seed", SEEDS)
def test_neither_the_cut_nor_the_ranks_change_a_gradient(
    gradients: dict[int, Any], seed: int
) -> None:
    expected = gradients[1][seed, 1]
    for num_ranks in gradients:
        for cut in CUTS:
            distance = np.linalg.norm(gradients[num_ranks][seed, cut] - expected)
            assert distance / np.linalg.norm(expected) < 1e-5, (num_ranks, cut)


@pytest.mark.parametrize("how", MIXTURES)
def test_a_mixture_of_experts_is_the_same_run_on_two_ranks(two_ranks: Any, how: Any) -> None:
    alone = mixture_losses(ALONE, "ddp", recomputed=False)
    assert two_ranks[1][how] == pytest.approx(alone, rel=1e-5)
