import multiprocessing
import os
from dataclasses import replace

import pytest
import torch

from sftctl.bench.advice import recommend
from sftctl.bench.measure import measure
from sftctl.bench.ranks import loading_ranks, together
from sftctl.bench.sweep import BenchSettings, compare, sweep_settings
from sftctl.data.loader import LoaderSettings, StepLoader
from sftctl.machine import usage_of
from sftctl.metrics import LoaderResult
from tests.toys.loaders import (
    SHAPE,
    BlowsUpWithTwoWorkers,
    KillsItsWorker,
    LeavesFewFiles,
    RaisesEverywhere,
    RaisesInAWorker,
    Toy,
    WantsForkedWorkers,
)

CPU = torch.device("cpu")
QUICK = BenchSettings(seconds=0.02, rounds=2)
NONE_AND_ONE = sweep_settings([1], [False], [2], [True])


def test_a_single_number_of_workers_is_compared_with_none():
    assert [s.num_workers for s in sweep_settings([4], [False], [2], [True])] == [0, 4]
    assert [s.num_workers for s in sweep_settings([0], [False], [2], [True])] == [0]


def test_without_workers_prefetch_and_persistence_make_no_settings_of_their_own():
    sweep = sweep_settings([0, 2], [False], [1, 4], [False, True])
    assert [s.num_workers for s in sweep] == [0, 2, 2, 2, 2]
    assert not sweep[0].persistent_workers


def test_every_combination_is_measured_once():
    sweep = sweep_settings([0, 1, 1], [False, True], [1, 2], [True])
    assert len(sweep) == len(set(sweep)) == 2 + 2 * 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_round_has_every_number(workers):
    settings = LoaderSettings(num_workers=workers)
    result = measure(Toy(), SHAPE, settings, CPU, seconds=0.05, step_time_s=0.001)
    assert result.num_workers == workers
    assert result.prefetch_factor == (2 if workers else None)
    assert result.error is None
    assert result.samples_per_s <= 4 * result.batches_per_s  # the last step of an epoch is short
    assert result.tokens_per_s >= 3 * result.samples_per_s  # the shortest example has 3
    assert 0 < result.wait_p50_s <= result.wait_p99_s
    assert result.first_batch_s > 0
    assert result.step_wait_s > 0
    assert 0 < result.pss_bytes <= result.rss_bytes
    assert result.open_files > 3


def test_the_processes_of_a_setting_are_counted_together():
    alone = usage_of([os.getpid()])
    result = measure(Toy(), SHAPE, LoaderSettings(num_workers=2), CPU, seconds=0.02)
    assert result.rss_bytes > alone.rss_bytes * 1.2
    assert result.open_files > alone.open_files * 2
    assert result.shm_bytes > 0  # the semaphores of the queues
    assert result.step_wait_s is None  # no step was asked for


@pytest.mark.parametrize("persistent", [False, True])
def test_a_round_leaves_no_process_behind(persistent):
    settings = LoaderSettings(num_workers=2, persistent_workers=persistent)
    measure(Toy(), SHAPE, settings, CPU, seconds=0.02)
    assert multiprocessing.active_children() == []


def compared(store, sweep, world_size=1, obstacles=None, **more):
    shapes = [
        replace(SHAPE, rank=rank, world_size=world_size, cut_for_ranks=world_size)
        for rank in range(world_size)
    ]
    with loading_ranks(store, shapes, "cpu") as ranks:
        results = compare(ranks, dict.fromkeys(sweep) | (obstacles or {}), QUICK, **more)
    assert multiprocessing.active_children() == []
    return results


def test_the_rounds_are_summed_up_by_medians_and_their_spread():
    seen = []
    results = compared(
        Toy(), NONE_AND_ONE, on_progress=lambda rows, done, total: seen.append((rows, done, total))
    )
    assert [r.num_workers for r in results] == [0, 1]
    assert all(r.tokens_per_s > 0 and r.spread_ratio >= 0 for r in results)
    assert [(done, total) for _, done, total in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert seen[0][0][1].tokens_per_s is None  # not measured yet
    assert tuple(seen[-1][0]) == results


def test_a_rank_that_was_spawned_forks_its_loader_processes():
    assert [r.error for r in compared(WantsForkedWorkers(), NONE_AND_ONE)] == [None, None]


def test_ranks_load_at_once_each_its_share():
    [result] = compared(Toy(), NONE_AND_ONE[:1], world_size=2, step_time_s=0.001)
    assert result.error is None
    assert result.samples_per_s <= 4 * result.batches_per_s / 2 * 1.5
    assert result.step_wait_s > 0


def test_what_ranks_do_at_once_is_summed_and_the_worst_wait_counts():
    one = LoaderResult(0, False, None, False, 10.0, 40.0, 400.0, 0.1, 0.01, 0.02, 1000, 900, 10, 7)
    other = replace(one, batches_per_s=5.0, wait_p99_s=0.5, rss_bytes=1, open_files=1)
    both = together([one, other])
    assert (both.batches_per_s, both.rss_bytes, both.open_files) == (15.0, 1001, 8)
    assert (both.wait_p50_s, both.wait_p99_s, both.step_wait_s) == (0.01, 0.5, None)
    assert together([one, replace(other, error="broke")]).error == "broke"


@pytest.mark.parametrize(
    ("store", "words"),
    [
        (RaisesInAWorker(), "too many open files"),
        (KillsItsWorker(), "DataLoader worker (pid"),
        (LeavesFewFiles(), "Too many open files"),
    ],
)
def test_a_setting_that_fails_is_a_row_with_its_error(store, words):
    none, some = compared(store, sweep_settings([3], [False], [2], [True]))
    assert none.error is None and none.tokens_per_s > 0
    assert words in some.error and some.tokens_per_s is None
    assert recommend([none, some])[0] == none


def test_a_setting_that_kills_the_loading_process_is_a_row_and_the_others_are_measured():
    sweep = sweep_settings([0, 2, 1], [False], [2], [True])
    none, two, one = compared(BlowsUpWithTwoWorkers(), sweep)
    assert two.error == "the loading process was killed by SIGBUS"
    assert none.error is None and one.error is None
    assert none.tokens_per_s > 0 and one.tokens_per_s > 0


def test_a_setting_with_an_obstacle_is_not_tried():
    none, one = compared(Toy(), NONE_AND_ONE, obstacles={NONE_AND_ONE[1]: "skipped: too much"})
    assert one.error == "skipped: too much" and one.tokens_per_s is None
    assert none.error is None


def test_nothing_is_recommended_where_every_setting_fails():
    results = compared(RaisesEverywhere(), NONE_AND_ONE)
    assert recommend(results) == (
        None,
        "every setting failed; the first: ValueError: no such row",
    )


@pytest.mark.parametrize("persistent", [False, True])
def test_the_measured_loader_gives_the_same_steps_with_and_without_workers(persistent):
    """Also in a second epoch, and after an epoch that was left early."""

    def steps(settings):
        loader = StepLoader(Toy(), SHAPE, settings)
        left_early = loader.steps(0)
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
