"""train.reduction = exact: the same bits on one, two, three and four ranks."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial, reduce
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sftctl.checkpoint.layout import read_manifest
from sftctl.config.load import load_config
from sftctl.data.example import ExampleArrays
from sftctl.errors import ConfigError
from sftctl.train.engine.build import build_state
from sftctl.train.engine.evaluate import evaluate
from sftctl.train.engine.exact_sum import ExactSum, whole_units
from sftctl.train.stop import StopRequest
from sftctl.world import World, start_world
from tests.toys.data import ToyStore
from tests.toys.ranks import run_in_turn
from tests.toys.runs import assert_same_tensors, metrics_of, same_run, stored_tensors, toy_data
from tests.toys.steps import ALONE, STORE, make_config, make_model, relative_distance
from tests.toys.strategies import (
    Divergence,
    diverge,
    facts_of,
    full_tensors,
    resume_copy,
    shape_of,
    state_of,
    train_run,
    train_to,
)

# ---------------------------------------------------------------------------- sums of losses


@pytest.mark.parametrize("largest_weight", [1.0, 1e6])
def test_sums_of_weighted_losses_do_not_depend_on_their_order(largest_weight: float) -> None:
    """A fixed unit of 2**-24 would be wrong for weights near a million."""
    rng = np.random.default_rng(0)
    weights = rng.uniform(0, largest_weight, 4000)
    weights[::2] = rng.uniform(0, 1, 2000)
    losses = torch.tensor(weights * rng.uniform(0, 12, 4000), dtype=torch.float32)
    units = whole_units(losses, max(4000.0, weights.sum()))
    orders = [rng.permutation(4000) for _ in range(8)]
    sums = {float(units[torch.from_numpy(order)].cumsum(0)[-1]) for order in orders}
    assert len(sums) == 1
    assert sums.pop() == pytest.approx(float(losses.double().sum()), rel=1e-9)
    too_fine = whole_units(losses, 1.0)
    sums = {float(too_fine[torch.from_numpy(order)].cumsum(0)[-1]) for order in orders}
    assert (len(sums) == 1) is (largest_weight == 1.0)


def test_the_unit_of_a_sum_of_losses_grows_with_the_total_weight() -> None:
    unit = 2.0**-24
    for total_weight, units in ((1.0, 1), (2**22 - 1, 1), (2**22, 2), (2**24, 8)):
        for number, expected in ((0.49, 0), (0.51, 1), (1.0, 1), (3.0, 3)):
            value = torch.tensor(number * units * unit, dtype=torch.float64)
            assert float(whole_units(value, total_weight)) == expected * units * unit


def test_a_set_with_the_largest_weights_is_measured_alike_on_any_ranks() -> None:
    config, store = make_config(), ToyStore([9, 30, 12, 25, 40, 7, 18, 33] * 40, STORE.vocab_size)
    for number, example in enumerate(store.examples):
        weights = np.where(example.loss_mask, 999_999.9 if number % 2 else 0.3, 0)
        store.examples[number] = replace(example, loss_weights=weights.astype(np.float32))
    store.target_weights = ExampleArrays.pack(store.examples).target_weights
    state = build_state(make_model(), config, ALONE, longest_row=64)

    def measured(world: World) -> tuple[float, ...]:
        found = evaluate(state, store, shape_of(state, config, world), ALONE, StopRequest())
        assert found is not None
        return found.sums

    parts = [measured(replace(ALONE, rank=rank, world_size=3)) for rank in range(3)]
    whole = measured(ALONE)
    assert tuple(map(sum, zip(*parts, strict=True))) == whole
    assert whole[0] > 2**29


# ---------------------------------------------------------------------------- the sum alone


def exact_sum(gradients: list[torch.Tensor], scale: float = 1.0) -> torch.Tensor:
    """The exact sum of one parameter's gradients, one per micro-batch, on one rank."""
    parameter = torch.nn.Parameter(torch.zeros_like(gradients[0]))
    module = torch.nn.ParameterList([parameter])
    exact_sum = ExactSum(list(module.parameters()))

    def run() -> None:
        for gradient in gradients:
            parameter.grad = gradient * scale
            exact_sum.add_gradients()

    exact_sum.accumulate(run, len(gradients), scale, ALONE)
    assert parameter.grad is not None
    return parameter.grad / scale


def gradients_of(count: int, size: int = 1000, spread: float = 3.0) -> list[torch.Tensor]:
    """Random, over many orders of magnitude."""
    generator = torch.Generator().manual_seed(count)
    return [
        torch.randn(size, generator=generator)
        * 10 ** (torch.randn(size, generator=generator) * spread - 3)
        for _ in range(count)
    ]


@given(st.integers(2, 12), st.randoms(use_true_random=False))
def test_the_order_of_the_micro_batches_does_not_change_a_bit(
    count: int, source: random.Random
) -> None:
    gradients = gradients_of(count)
    expected = exact_sum(gradients)
    source.shuffle(gradients)
    assert torch.equal(exact_sum(gradients), expected)


def test_a_gradient_is_rounded_to_a_multiple_of_two_to_the_minus_50() -> None:
    gradient = torch.tensor([2.0**-50, 2.0**-51, 3 * 2.0**-51])
    assert torch.equal(exact_sum([gradient]), torch.tensor([2.0**-50, 0.0, 2 * 2.0**-50]))


def in_order(gradients: list[torch.Tensor]) -> torch.Tensor:
    """The ordinary sum, one addition after the other."""
    return reduce(torch.add, gradients)


def test_a_sum_in_float32_does_depend_on_the_order() -> None:
    gradients = gradients_of(12)
    assert not torch.equal(in_order(gradients), in_order(gradients[::-1]))


@pytest.mark.parametrize("count", [3, 15, 64])
def test_the_sum_is_nearer_to_the_true_one_than_a_sum_in_float32(count: int) -> None:
    gradients = [gradient * 1e-4 for gradient in gradients_of(count, 10_000, spread=0.5)]
    true = in_order([gradient.double() for gradient in gradients])
    ours = relative_distance(exact_sum(gradients).double(), true)
    theirs = relative_distance(in_order(gradients).double(), true)
    assert ours < theirs
    assert ours < 3e-8  # that of one rounding to float32


@pytest.mark.parametrize("largest", [1e3, 1e10, 1e30])
def test_large_gradients_are_summed_with_a_larger_unit(largest: float) -> None:
    gradients = [torch.tensor([largest, -largest / 7, 1.0]) for _ in range(5)]
    true = 5 * gradients[0].double()
    assert relative_distance(exact_sum(gradients).double(), true) < 1e-7


def test_the_unit_fits_gradients_of_every_size() -> None:
    for exponent in range(-40, 125):
        size = torch.tensor([1.5 * 2.0**exponent])
        assert torch.equal(exact_sum([size, size]), 2 * size), exponent


def test_a_loss_scale_changes_nothing() -> None:
    gradients = gradients_of(5)
    assert torch.equal(exact_sum(gradients, 2.0**16), exact_sum(gradients))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_makes_the_sum_nan(bad: float) -> None:
    assert exact_sum([torch.ones(3), torch.tensor([1.0, bad, 1.0])]).isnan().all()


def test_a_parameter_without_a_gradient_gets_zeros() -> None:
    """A rank whose micro-batches do not reach it must treat it as the others do."""
    module = torch.nn.Linear(2, 2)
    ExactSum(list(module.parameters())).accumulate(lambda: None, 1, 1.0, ALONE)
    assert all(p.grad is not None and not p.grad.any() for p in module.parameters())


def test_exact_with_fsdp_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["train.reduction=exact", "train.strategy=fsdp"])
    assert caught.value.message == "train.reduction: exact can't be combined with strategy fsdp"


# ---------------------------------------------------------------------------- steps and runs


@dataclass(frozen=True, slots=True)
class Findings:
    """What one rank found; digests are of everything that steps report and leave."""

    plain: str
    exact: str
    exact_bfloat16: str
    exact_float16: str
    exact_with_a_small_unit: str  # every step is run a second time, with a larger unit
    first_weights: list[float]
    divergence: Divergence


def find() -> Findings:
    with start_world("cpu") as world:
        return Findings(
            plain=digest(world, 5),
            exact=digest(world, 20, reduction="exact"),
            exact_bfloat16=digest(world, 4, reduction="exact", dtype="bfloat16"),
            exact_float16=digest(world, 4, reduction="exact", dtype="float16"),
            exact_with_a_small_unit=digest(world, 2, finest=61, reduction="exact"),
            first_weights=first_weights(world),
            divergence=diverge(make_config(reduction="exact"), world),
        )


def first_weights(world: World) -> list[float]:
    """The different weights of a state whose model is filled with another number on every rank."""
    model = make_model()
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, world.rank + 1)
    state = build_state(model, make_config(reduction="exact"), world, longest_row=64)
    parameters = state.loss_module.parameters()
    return sorted({end.item() for p in parameters for end in p.detach().aminmax()})


def digest(world: World, num_steps: int, finest: int | None = None, **settings: Any) -> str:
    """A hash of losses, norms, validation loss, and every tensor of the state."""
    config = make_config(batch_size=4, **settings)
    config = replace(config, optim=replace(config.optim, grad_clip=1.0))
    state = state_of(config, world)
    if finest is not None:
        state.exact = ExactSum(state.weights.trained, finest)
    steps = [facts_of(line) for line in train_to(state, config, world, num_steps)]
    assert len(steps) == num_steps
    validation = evaluate(state, STORE, shape_of(state, config, world), world, StopRequest())
    result = sha256(repr((steps, validation)).encode())
    for _, array in sorted(full_tensors(state).items()):
        result.update(array.tobytes())
    return result.hexdigest()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """As the ranks have."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exact")
    toy_data(folder)
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path, one_thread: None) -> dict[int, list[Findings]]:
    """Number of ranks -> what each found. A run of four ranks is resumed by one, two and three."""
    runs = {
        4: partial(train_run, folder, "4", reduction="exact"),
        3: partial(resume_copy, folder, "3", "4", 3),
        2: partial(resume_copy, folder, "2", "4", 3),
    }
    found = {count: [rank[0] for rank in run_in_turn(count, [find, runs[count]])] for count in runs}
    found[1] = [find()]
    torch.set_num_threads(2)  # the resumed run goes back to one thread, as the ranks had
    resume_copy(folder, "1", "4", 3)
    return found


Ranks = dict[int, list[Findings]]


@pytest.mark.parametrize(
    "setting", ["exact", "exact_bfloat16", "exact_float16", "exact_with_a_small_unit"]
)
def test_steps_are_the_same_bits_on_any_number_of_ranks(ranks: Ranks, setting: str) -> None:
    """Losses, norms, weights and moments of up to twenty clipped steps, and validation loss."""
    assert len({getattr(found, setting) for count in ranks for found in ranks[count]}) == 1


def test_every_rank_starts_with_the_weights_of_rank_0(ranks: Ranks) -> None:
    assert all(found.first_weights == [1.0] for count in ranks for found in ranks[count])


def test_without_exact_sums_the_bits_depend_on_the_number_of_ranks(ranks: Ranks) -> None:
    assert len({ranks[count][0].plain for count in ranks}) > 1


def test_a_gradient_that_is_not_finite_on_one_rank_stops_all(ranks: Ranks) -> None:
    [divergence] = {found.divergence for count in ranks for found in ranks[count]}
    assert divergence.message.startswith(
        "step 1 (epoch 1): the gradient norm is nan; the weights are those"
    )
    assert divergence.is_unchanged


@pytest.mark.usefixtures("ranks")
@pytest.mark.parametrize("count", ["1", "2", "3"])
def test_a_run_of_four_ranks_continues_on_fewer_with_the_same_bits(
    folder: Path, count: str
) -> None:
    assert same_run(metrics_of(folder / count)) == same_run(metrics_of(folder / "4"))
    last = "checkpoints/step-00000008"
    assert_same_tensors(stored_tensors(folder / count / last), stored_tensors(folder / "4" / last))
    one, four = (read_manifest(folder / name / last) for name in (count, "4"))
    assert (one.validation, one.num_threads) == (four.validation, four.num_threads)
