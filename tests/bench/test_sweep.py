"""The sweep: settings are compared on ranks, and a setting that fails becomes a row."""

import multiprocessing
import os
import signal
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from sftctl.bench.advice import recommend
from sftctl.bench.measure import measure
from sftctl.bench.ranks import Ranks
from sftctl.bench.result import LoaderResult, over_ranks
from sftctl.bench.sweep import BenchSettings, combinations, compare, notes_on, rank_shapes
from sftctl.config.schema import RunConfig, TrainConfig
from sftctl.data.loading.loader import LoaderSettings, StepLoader
from sftctl.data.loading.microbatch import Examples
from sftctl.data.mixture import MixedSource, Mixture
from sftctl.data.step_shape import step_shape
from sftctl.machine import Machine, usage_of
from tests.toys.loaders import (
    SHAPE,
    BlowsUpWithTwoWorkers,
    EndsItsProcess,
    KillsItsWorker,
    KillsTheRankAndLives,
    LeavesFewFiles,
    NeverAnswers,
    RaisesEverywhere,
    RaisesInAWorker,
    RaisesOnce,
    Toy,
    WantsForkedWorkers,
)

CPU = torch.device("cpu")
QUICK = BenchSettings(seconds=0.02, rounds=2)
TWO_RANKS = [replace(SHAPE, rank=rank, world_size=2, cut_for_ranks=2) for rank in (0, 1)]
NONE_AND_ONE = combinations([1], [False], [2], [True])


def numbers_of(result: LoaderResult) -> Any:
    """The result of a setting that did not fail: its numbers are not None."""
    assert result.error is None
    return result


def test_a_single_number_of_workers_is_compared_with_none() -> None:
    assert [s.num_workers for s in combinations([4], [False], [2], [True])] == [0, 4]
    assert [s.num_workers for s in combinations([0], [False], [2], [True])] == [0]


def test_without_workers_there_is_only_one_setting() -> None:
    sweep = combinations([0, 2], [False], [1, 4], [False, True])
    assert [s.num_workers for s in sweep] == [0, 2, 2, 2, 2]
    assert not sweep[0].persistent_workers


def test_every_combination_is_measured_once() -> None:
    sweep = combinations([0, 1, 1], [False, True], [1, 2], [True])
    assert len(sweep) == len(set(sweep)) == 2 + 2 * 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_round_has_every_number(workers: int) -> None:
    settings = LoaderSettings(num_workers=workers)
    result = measure(
        partial(StepLoader, Toy(), SHAPE, settings), settings, CPU, seconds=0.05, step_time_s=0.001
    )
    assert result.num_workers == workers
    assert result.prefetch_factor == (2 if workers else None)
    numbers = numbers_of(result)
    assert numbers.samples_per_s <= 4 * numbers.batches_per_s  # the last step of an epoch is short
    assert numbers.tokens_per_s >= 3 * numbers.samples_per_s  # the shortest example has 3
    assert 0 < numbers.wait_p50_s <= numbers.wait_p99_s
    assert numbers.first_batch_s > 0
    assert numbers.step_wait_s > 0
    assert 0 < numbers.pss_bytes <= numbers.rss_bytes
    assert numbers.open_files > 3


def test_the_processes_of_a_setting_are_counted_over_ranks() -> None:
    alone = usage_of([os.getpid()])
    settings = LoaderSettings(num_workers=2)
    result = numbers_of(
        measure(partial(StepLoader, Toy(), SHAPE, settings), settings, CPU, seconds=0.02)
    )
    assert result.rss_bytes > alone.rss_bytes * 1.2
    assert result.open_files > alone.open_files * 2
    assert result.shm_bytes > 0  # the semaphores of the queues
    assert result.step_wait_s is None  # no step was asked for


@pytest.mark.parametrize("persistent", [False, True])
def test_a_round_leaves_no_process_behind(persistent: bool) -> None:
    settings = LoaderSettings(num_workers=2, persistent_workers=persistent)
    measure(partial(StepLoader, Toy(), SHAPE, settings), settings, CPU, seconds=0.02)
    assert multiprocessing.active_children() == []


def compared(
    store: Examples,
    sweep: list[LoaderSettings],
    world_size: int = 1,
    skipped: dict[LoaderSettings, str | None] | None = None,
    **more: Any,
) -> tuple[LoaderResult, ...]:
    shapes = [
        replace(SHAPE, rank=rank, world_size=world_size, cut_for_ranks=world_size)
        for rank in range(world_size)
    ]
    with closing(Ranks(store, shapes, "cpu")) as ranks:
        results = compare(ranks, dict.fromkeys(sweep) | (skipped or {}), QUICK, **more)
    assert multiprocessing.active_children() == []
    return results


def test_the_rounds_are_summed_up_by_medians_and_their_spread() -> None:
    seen: list[Any] = []
    results = compared(
        Toy(), NONE_AND_ONE, on_progress=lambda rows, done, total: seen.append((rows, done, total))
    )
    assert [r.num_workers for r in results] == [0, 1]
    assert all(r.tokens_per_s > 0 and r.spread_ratio >= 0 for r in map(numbers_of, results))
    assert [(done, total) for _, done, total in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert seen[0][0][1].tokens_per_s is None  # not measured yet
    assert tuple(seen[-1][0]) == results


def test_a_rank_that_was_spawned_forks_its_loader_processes() -> None:
    assert [r.error for r in compared(WantsForkedWorkers(), NONE_AND_ONE)] == [None, None]


def test_ranks_shape_their_steps_as_training_does() -> None:
    train = TrainConfig(batch_size=3, strategy="fsdp", seed=5)
    assert rank_shapes(RunConfig(train=train), 2) == [
        step_shape(train, rank=rank, world_size=2) for rank in range(2)
    ]


def test_ranks_load_at_the_same_time_and_each_loads_its_share() -> None:
    [result] = map(numbers_of, compared(Toy(), NONE_AND_ONE[:1], world_size=2, step_time_s=0.001))
    assert result.samples_per_s <= 4 * result.batches_per_s / 2 * 1.5
    assert result.step_wait_s > 0


def test_rates_of_ranks_are_summed_and_the_longest_wait_counts() -> None:
    one = LoaderResult(0, False, None, False, 10.0, 40.0, 400.0, 0.1, 0.01, 0.02, 1000, 900, 10, 7)
    other = replace(one, batches_per_s=5.0, wait_p99_s=0.5, rss_bytes=1, open_files=1)
    both = over_ranks([one, other])
    assert (both.batches_per_s, both.rss_bytes, both.open_files) == (15.0, 1001, 8)
    assert (both.wait_p50_s, both.wait_p99_s, both.step_wait_s) == (0.01, 0.5, None)
    assert over_ranks([one, replace(other, error="broke")]).error == "broke"


@pytest.mark.parametrize(
    ("store", "words"),
    [
        (RaisesInAWorker(), "too many open files"),
        (KillsItsWorker(), "DataLoader worker (pid"),
        (LeavesFewFiles(), "Too many open files"),
    ],
)
def test_a_setting_that_fails_is_a_row_with_its_error(store: Examples, words: str) -> None:
    none, some = compared(store, combinations([3], [False], [2], [True]))
    assert numbers_of(none).tokens_per_s > 0
    assert words in str(some.error) and some.tokens_per_s is None
    assert recommend([none, some])[0] == none


def test_a_setting_that_kills_the_loading_process_is_a_row_and_the_others_are_measured() -> None:
    sweep = combinations([0, 2, 1], [False], [2], [True])
    none, two, one = compared(BlowsUpWithTwoWorkers(), sweep)
    assert two.error == "the loading process was killed by SIGBUS"
    assert numbers_of(none).tokens_per_s > 0 and numbers_of(one).tokens_per_s > 0


def test_a_killed_rank_is_noticed_although_its_loader_process_lives_on(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    try:
        [one] = compared(KillsTheRankAndLives(pid_file), NONE_AND_ONE[1:])
    finally:
        os.kill(int(pid_file.read_text()), signal.SIGKILL)
    assert one.error == "the loading process was killed by SIGKILL"


def test_a_rank_that_ends_is_a_row_with_its_exit_code() -> None:
    [result] = compared(EndsItsProcess(), NONE_AND_ONE[:1])
    assert result.error == "the loading process ended with exit code 3"


def test_a_rank_that_does_not_answer_is_killed_and_a_row() -> None:
    with closing(Ranks(NeverAnswers(), [SHAPE], "cpu", patience_s=1.0)) as ranks:
        result = ranks.measure(LoaderSettings(), 0.02, None)
        assert multiprocessing.active_children() == []
    assert result.error == "no batch in 1 s"


def test_a_failure_on_one_rank_is_the_row_and_the_other_rank_goes_on(tmp_path: Path) -> None:
    with closing(Ranks(RaisesOnce(tmp_path / "raised"), TWO_RANKS, "cpu")) as ranks:
        failed = ranks.measure(LoaderSettings(), 0.02, None)
        good = ranks.measure(LoaderSettings(), 0.02, None)
    assert failed.error == "ValueError: the first row is bad"
    assert numbers_of(good).tokens_per_s > 0


def test_notes_say_what_is_special_about_the_numbers() -> None:
    machine = Machine(4, 2.5, None, 1024)
    plain = BenchSettings(workers=(0, 1), num_ranks=2)
    assert list(notes_on(plain, machine, "cpu", 10, Toy())) == []
    special = BenchSettings(workers=(0, 2), num_ranks=2, pin_memory="both", source="text")
    assert list(notes_on(special, machine, "cpu", 5000, Toy())) == [
        "pin_memory: not applicable, there is no CUDA device",
        "4 loader processes share 2.5 cores",
        "text: the first 10 examples of 5,000",
    ]
    assert list(notes_on(special, Machine(4, None, None, 1024), "cuda", 10, Toy())) == []


def test_a_setting_that_needs_too_much_is_not_tried() -> None:
    none, one = compared(Toy(), NONE_AND_ONE, skipped={NONE_AND_ONE[1]: "skipped: too much"})
    assert one.error == "skipped: too much" and one.tokens_per_s is None
    assert none.error is None


def test_nothing_is_recommended_if_every_setting_fails() -> None:
    results = compared(RaisesEverywhere(), NONE_AND_ONE)
    assert recommend(results) == (
        None,
        "every setting failed; the first: ValueError: no such row",
    )


@pytest.mark.parametrize("persistent", [False, True])
def test_the_loader_gives_the_same_steps_with_and_without_workers(
    persistent: bool,
) -> None:
    """This holds in a second epoch too, and after an epoch that was left early."""

    def steps(settings: LoaderSettings) -> list[Any]:
        loader = StepLoader(Toy(), SHAPE, settings)
        left_early: Any = loader.steps(0)
        batches = [next(left_early)]
        left_early.close()
        for epoch in (1, 2):
            batches += loader.steps(epoch, start_step=epoch - 1)
        return [
            (
                b.epoch,
                b.step_in_epoch,
                [(m.examples, m.input_ids.tolist()) for m in b.micro_batches],
            )
            for b in batches
        ]

    settings = LoaderSettings(num_workers=2, prefetch_factor=4, persistent_workers=persistent)
    assert steps(settings) == steps(LoaderSettings())


def test_what_is_measured_is_the_plan_of_a_mixture() -> None:
    """A source of weight 0 is never loaded, and one of weight 2 twice an epoch."""
    sources = (MixedSource("left out", 0, 7, 0.0), MixedSource("a", 7, 3, 2.0))
    seen = list[int]()

    class Watched(Toy):
        def __getitem__(self, index: int) -> Any:
            seen.append(index)
            return super().__getitem__(index)

    new_loader = partial(StepLoader, Watched(), SHAPE, LoaderSettings(), Mixture(sources))
    measure(new_loader, LoaderSettings(), CPU, seconds=0.02)
    assert set(seen) == {7, 8, 9}
