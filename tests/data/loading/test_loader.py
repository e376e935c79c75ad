"""StepLoader: what each rank gets of a step, after any resume, and loader processes that fail."""

import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sftctl.config.schema import TrainConfig
from sftctl.data.loading.loader import (
    LoaderSettings,
    StepLoader,
    evaluation_rounds,
    loader_death_as_error,
    longest_micro_batch,
)
from sftctl.data.loading.microbatch import MicroBatch, StepBatch
from sftctl.data.manifest import PUT_BACK
from sftctl.data.plan import examples_digest, plan_epoch
from sftctl.data.step_shape import StepShape, step_shape
from sftctl.errors import DataError, LoaderDied
from tests.toys.data import ToyStore, same

LENGTHS = [2, 5, 31, 8, 3, 17, 9, 4, 26, 12, 6, 7, 3, 21, 11, 10, 2, 14, 5]
STORE = ToyStore(LENGTHS)
STEPS_PER_EPOCH = 5  # 19 examples in steps of 4: the last one holds 3
SHAPE = StepShape(
    seed=7, global_batch_size=4, micro_batch_tokens=40, cut_for_ranks=1, rank=0, world_size=1
)
HERE = LoaderSettings()
TWO_WORKERS = LoaderSettings(num_workers=2, persistent_workers=False)
TWO_THAT_STAY = LoaderSettings(num_workers=2, persistent_workers=True)


def make_loader(settings: LoaderSettings = HERE, **changes: Any) -> StepLoader:
    return StepLoader(STORE, replace(SHAPE, **changes), settings)


def ranks_of(world_size: int, **changes: Any) -> list[list[StepBatch]]:
    """For each rank its steps of epoch 0."""
    shape = {"world_size": world_size, "cut_for_ranks": world_size, **changes}
    return [list(make_loader(rank=rank, **shape).steps(0)) for rank in range(world_size)]


def examples_of(batches: Iterable[MicroBatch]) -> list[int]:
    return [index for micro_batch in batches for index in micro_batch.examples]


# ---------------------------------------------------------------------------- steps


def test_steps_are_those_of_the_plan() -> None:
    for epoch in (0, 1):
        plan = plan_epoch(LENGTHS, SHAPE.seed, epoch, SHAPE.global_batch_size)
        steps = list(make_loader().steps(epoch))
        assert [step.step_in_epoch for step in steps] == list(range(STEPS_PER_EPOCH))
        assert {step.epoch for step in steps} == {epoch}
        assert [step.num_examples for step in steps] == [4, 4, 4, 4, 3]
        for step in steps:
            planned = plan[step.step_in_epoch].tolist()
            assert sorted(examples_of(step.micro_batches)) == sorted(planned)


def test_micro_batches_keep_the_budget_and_are_numbered() -> None:
    for step in make_loader().steps(0):
        assert [batch.number for batch in step.micro_batches] == list(
            range(len(step.micro_batches))
        )
        for batch in step.micro_batches:
            assert len(batch.examples) == 1 or batch.num_tokens <= 40


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6])
def test_a_step_holds_the_same_examples_over_any_number_of_ranks(world_size: int) -> None:
    one = list(make_loader().steps(0))
    for alone, *parts in zip(one, *ranks_of(world_size), strict=True):
        together = Counter(index for part in parts for index in examples_of(part.micro_batches))
        assert together == Counter(examples_of(alone.micro_batches))
        assert {part.num_examples for part in parts} == {alone.num_examples}
        assert {part.num_target_tokens for part in parts} == {alone.num_target_tokens}


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6])
def test_the_number_of_target_tokens_is_what_all_ranks_hold(world_size: int) -> None:
    for parts in zip(*ranks_of(world_size), strict=True):
        held = sum(mb.num_target_tokens for part in parts for mb in part.micro_batches)
        assert {part.num_target_tokens for part in parts} == {held}


def test_a_cut_made_for_other_ranks_is_kept_and_only_dealt_again() -> None:
    def cuts(world_size: int) -> list[dict[int, tuple[int, ...]]]:
        ranks = ranks_of(world_size, cut_for_ranks=2)
        return [
            {
                batch.number: batch.examples
                for part in parts
                for batch in part.micro_batches
                if batch.examples
            }
            for parts in zip(*ranks, strict=True)
        ]

    assert cuts(1) == cuts(2) == cuts(3)


def test_a_rank_without_examples_runs_one_row_with_no_target_tokens() -> None:
    ranks = ranks_of(6)
    last = [rank[-1] for rank in ranks]
    idle = [part for part in last if not examples_of(part.micro_batches)]
    assert len(idle) == 3  # six ranks, three examples
    for part in idle:
        [row] = part.micro_batches
        assert row.input_ids.shape[0] == 1 and row.input_ids.dtype == torch.int64
        assert len(row.target_ids) == len(row.target_positions) == row.num_tokens == 0
        assert part.num_target_tokens > 0
        assert examples_digest(row.examples) == 0


@pytest.mark.parametrize(
    ("strategy", "world_size", "lockstep"),
    [("ddp", 2, False), ("fsdp", 1, False), ("fsdp", 2, True)],
)
def test_the_strategy_decides_whether_ranks_run_in_lockstep(
    strategy: Any, world_size: int, lockstep: bool
) -> None:
    train = TrainConfig(batch_size=3, accumulation_steps=2, strategy=strategy, seed=7)
    rank = world_size - 1
    assert step_shape(train, rank=rank, world_size=world_size) == StepShape(
        seed=7,
        global_batch_size=6,
        micro_batch_tokens=1024,
        cut_for_ranks=world_size,
        rank=rank,
        world_size=world_size,
        lockstep=lockstep,
    )


def test_a_resumed_run_keeps_the_number_of_ranks_that_steps_are_cut_for() -> None:
    shape = step_shape(TrainConfig(), rank=1, world_size=2, cut_for_ranks=5)
    assert (shape.cut_for_ranks, shape.rank, shape.world_size) == (5, 1, 2)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6])
def test_in_lockstep_every_rank_runs_equally_many_micro_batches_of_the_same_cut(
    world_size: int,
) -> None:
    free, bound = (ranks_of(world_size, lockstep=lockstep) for lockstep in (False, True))
    for parts, others in zip(zip(*bound, strict=True), zip(*free, strict=True), strict=True):
        assert len({len(part.micro_batches) for part in parts}) == 1
        cut, other_cut = (
            {mb.number: mb for part in each for mb in part.micro_batches if mb.examples}
            for each in (parts, others)
        )
        assert same(sorted(cut), sorted(other_cut))
        assert all(same(cut[number], other_cut[number]) for number in cut)
        assert len(parts[0].micro_batches) == -(-len(cut) // world_size)
        fillers = [mb for part in parts for mb in part.micro_batches if not mb.examples]
        assert all(
            mb.num_tokens == mb.num_padding_tokens == len(mb.target_ids) == 0 for mb in fillers
        )
        assert {part.num_target_tokens for part in parts} == {others[0].num_target_tokens}


# ---------------------------------------------------------------------------- resume


def assert_resumes_exactly(settings: LoaderSettings, cut: int) -> None:
    """A new loader, started after `cut` steps, yields what the first one would yield next."""
    loader = make_loader()
    whole = [*loader.steps(0), *loader.steps(1)]
    epoch, step = divmod(cut, STEPS_PER_EPOCH)
    resumed = make_loader(settings)
    rest = list(resumed.steps(epoch, step))
    for later in range(epoch + 1, 2):
        rest += resumed.steps(later)
    assert same(rest, whole[cut:])


@pytest.mark.parametrize("cut", range(2 * STEPS_PER_EPOCH))
def test_a_resumed_loader_continues_with_the_same_batches(cut: int) -> None:
    assert_resumes_exactly(HERE, cut)


@pytest.mark.parametrize("settings", [TWO_WORKERS, TWO_THAT_STAY], ids=["workers", "persistent"])
@pytest.mark.parametrize("cut", [0, 1, STEPS_PER_EPOCH - 1, STEPS_PER_EPOCH, STEPS_PER_EPOCH + 1])
def test_a_resumed_loader_with_workers_continues_with_the_same_batches(
    settings: LoaderSettings, cut: int
) -> None:
    assert_resumes_exactly(settings, cut)


def test_fresh_loader_processes_give_the_same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS, where a process must not fork."""
    monkeypatch.setattr("sftctl.data.loading.loader._START", "spawn")
    fresh = make_loader(LoaderSettings(num_workers=1, persistent_workers=True))
    assert same(
        [*fresh.steps(0), *fresh.steps(1)], [*make_loader().steps(0), *make_loader().steps(1)]
    )


def test_a_loader_at_the_end_of_its_epoch_is_empty() -> None:
    assert list(make_loader().steps(0, STEPS_PER_EPOCH)) == []


@pytest.mark.parametrize("settings", [HERE, TWO_WORKERS, TWO_THAT_STAY])
def test_an_epoch_that_was_left_early_does_not_change_the_next(
    settings: LoaderSettings,
) -> None:
    loader = make_loader(settings)
    expected = list(make_loader().steps(1))
    steps = loader.steps(0)
    next(steps)
    next(steps)
    assert same(list(loader.steps(1)), expected)
    next(loader.steps(1))
    assert same(list(loader.steps(1, 2)), expected[2:])


def test_a_loader_draws_nothing_from_the_global_random_stream() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(make_loader().steps(0))
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------------------- evaluation


def evaluated_by(world_size: int, store: ToyStore, **changes: Any) -> list[list[MicroBatch]]:
    """Each rank's micro-batches. All ranks have equally many rounds."""
    shape = replace(SHAPE, world_size=world_size, cut_for_ranks=world_size, **changes)
    rounds = [list(evaluation_rounds(store, replace(shape, rank=r))) for r in range(world_size)]
    assert len({len(of_rank) for of_rank in rounds}) == 1  # ranks meet before each
    assert all(len(batches) <= 1 for of_rank in rounds for _, batches in of_rank)
    done = [num_done for num_done, _ in rounds[0]]
    assert done == sorted(done) and all(0 <= number < len(store.lengths) for number in done)
    return [[batch for _, batches in of_rank for batch in batches] for of_rank in rounds]


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("num_examples", [1, 19, 600])
def test_an_evaluation_covers_each_example_once(num_examples: int, world_size: int) -> None:
    store = ToyStore(np.random.default_rng(1).integers(2, 40, num_examples).tolist())
    ranks = evaluated_by(world_size, store)
    together = [index for batches in ranks for index in examples_of(batches)]
    assert sorted(together) == list(range(num_examples))
    held = sum(batch.num_target_tokens for batches in ranks for batch in batches)
    assert held == store.target_lengths.sum()


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("num_examples", [1, 2, 19, 600])
def test_an_evaluation_in_lockstep_covers_the_same_in_equally_many_micro_batches(
    num_examples: int, world_size: int
) -> None:
    store = ToyStore(np.random.default_rng(1).integers(2, 40, num_examples).tolist())
    ranks = evaluated_by(world_size, store, lockstep=True)
    assert len({len(batches) for batches in ranks}) == 1
    together = [index for batches in ranks for index in examples_of(batches)]
    assert sorted(together) == list(range(num_examples))


def test_an_evaluation_of_nothing_is_empty() -> None:
    assert evaluated_by(1, ToyStore([])) == [[]]
    assert evaluated_by(2, ToyStore([]), lockstep=True) == [[], []]


def test_without_loader_processes_the_next_step_is_made_ahead() -> None:
    class Watched(ToyStore):
        def __getitem__(self, index: int) -> Any:
            asked.add(index)
            if len(asked) > SHAPE.global_batch_size:
                is_ahead.set()
            return super().__getitem__(index)

    asked: set[int] = set()
    is_ahead = threading.Event()
    store = Watched([9, 14, 5, 11, 7, 8, 3, 12], vocab_size=53)
    steps: Any = StepLoader(store, SHAPE, LoaderSettings()).steps(0)
    next(steps)
    assert is_ahead.wait(timeout=300)
    steps.close()


def test_after_a_step_that_took_no_time_the_next_is_made_on_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Watched(ToyStore):
        def __getitem__(self, index: int) -> Any:
            made_by.append(threading.get_ident())
            return super().__getitem__(index)

    made_by: list[int] = []
    monkeypatch.setattr("time.perf_counter", lambda: 0.0)
    store = Watched([9, 14, 5, 11, 7, 8, 3, 12] * 2, vocab_size=53)
    steps = [*StepLoader(store, SHAPE, LoaderSettings()).steps(0)]
    assert [step.step_in_epoch for step in steps] == list(range(len(steps))) and len(steps) > 2
    after_two = made_by[2 * SHAPE.global_batch_size :]
    assert len(made_by) == len(store) and {*after_two} == {threading.get_ident()}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_example_is_a_data_error_without_a_traceback(num_workers: int) -> None:
    class Damaged(ToyStore):
        def __getitem__(self, index: int) -> Any:
            raise DataError(f"store/train: damaged: example {index}", "any hint")

    settings = LoaderSettings(num_workers=num_workers, persistent_workers=False)
    with pytest.raises(DataError) as caught:
        next(StepLoader(Damaged([5]), SHAPE, settings).steps(0))
    assert caught.value.message == "store/train: damaged: example 0"
    assert caught.value.hint == PUT_BACK


def test_a_killed_loader_process_is_an_error_with_a_hint() -> None:
    """The texts of torch's two errors; tests of training kill a real process."""
    for text in (
        "DataLoader worker (pid 7) is killed by signal: Killed. ",
        "DataLoader worker (pid(s) 7) exited unexpectedly",
    ):
        with (
            pytest.raises(LoaderDied, match="a loader process died: ") as caught,
            loader_death_as_error(),
        ):
            raise RuntimeError(text)
        assert "--num-workers 0" in str(caught.value.hint)
    with pytest.raises(RuntimeError, match="out of memory"), loader_death_as_error():
        raise RuntimeError("out of memory")


@pytest.mark.filterwarnings("ignore:.pin_memory. argument")
def test_pinning_changes_no_batch() -> None:
    """On a machine without a GPU, torch warns and pins nothing."""
    pinned = make_loader(LoaderSettings(pin_memory=True)).steps(0)
    assert same(list(pinned), list(make_loader().steps(0)))


def test_where_rows_would_mix_a_micro_batch_holds_one() -> None:
    for step in make_loader(rows_alone=True).steps(0):
        assert {len(batch.examples) for batch in step.micro_batches} == {1}
    assert longest_micro_batch(STORE, replace(SHAPE, rows_alone=True)).examples == (2,)


def test_the_longest_micro_batch_holds_as_many_of_the_longest_as_fit() -> None:
    store = ToyStore([9, 14, 5, 11, 13], vocab_size=53)
    for tokens, batch_size, examples in (
        (27, 4, (1, 4)),
        (26, 4, (1,)),
        (10**6, 3, (1, 4, 3)),
        (3, 4, (1,)),
    ):
        shape = replace(SHAPE, micro_batch_tokens=tokens, global_batch_size=batch_size)
        assert longest_micro_batch(store, shape).examples == examples
