"""One step's gradient, whatever it is cut into and however many ranks share it."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from sftctl.data.microbatch import StepBatch, collate, keeping_step
from sftctl.world import World, start_world
from tests.data.toy_store import ToyStore
from tests.ranks import run_ranks
from tests.train.step_toys import ALONE, STORE, first_gradient, make_config, make_model

SEEDS = tuple(range(8))
CUTS = (1, 2, 5)
Gradients = dict[tuple[int, int], npt.NDArray[np.float32]]  # (seed, pieces) -> gradient


def random_step(seed: int, num_pieces: int, rank: int, num_ranks: int) -> StepBatch:
    """A rank's part of a step of random rows, put into so many micro-batches at random."""
    rng = np.random.default_rng(seed)
    store = ToyStore(rng.integers(2, 40, rng.integers(5, 12)).tolist(), STORE.vocab_size, seed)
    pieces = np.array_split(rng.permutation(len(store.lengths)), num_pieces)
    mine = [collate(store, tuple(p.tolist()), i) for i, p in enumerate(pieces)][rank::num_ranks]
    num_targets = int(store.target_lengths.sum())
    micro_batches = tuple(mine) or (keeping_step(num_pieces),)
    return StepBatch(0, 0, len(store.lengths), num_targets, micro_batches)


def gradients_in(world: World) -> Gradients:
    from sftctl.train.state import build_state
    from sftctl.train.step import StepRules, train_step

    config, found = make_config(), {}
    for seed in SEEDS:
        for cut in CUTS:
            state = build_state(make_model(), config, world)
            batch = random_step(seed, cut, world.rank, world.world_size)
            train_step(state, batch, StepRules(config.optim, 0, 10, 10), world, 0.0)
            found[seed, cut] = first_gradient(state).numpy()
    return found


def on_a_rank() -> Gradients:
    with start_world("cpu") as world:
        return gradients_in(world)


@pytest.fixture(scope="module")
def gradients() -> dict[int, Any]:
    """Number of ranks -> the gradients found on rank 0."""
    return {1: gradients_in(ALONE), 2: run_ranks(2, on_a_rank)[0]}


@pytest.mark.parametrize("seed", SEEDS)
def test_neither_cut_nor_ranks_change_a_gradient(gradients: dict[int, Any], seed: int) -> None:
    expected = gradients[1][seed, 1]
    for num_ranks in gradients:
        for cut in CUTS:
            distance = np.linalg.norm(gradients[num_ranks][seed, cut] - expected)
            assert distance / np.linalg.norm(expected) < 1e-5, (num_ranks, cut)
