import multiprocessing
import os

import pytest
import torch

from sftctl.bench.advice import recommend
from sftctl.bench.loader import BenchSettings, compare, sweep_settings
from sftctl.bench.machine import rss_bytes
from sftctl.bench.measure import measure
from sftctl.data.loader import LoaderSettings, StepLoader
from tests.bench.toys import SHAPE, KillsItsWorker, RaisesEverywhere, RaisesInAWorker, Toy

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
    result = measure(Toy(), SHAPE, LoaderSettings(num_workers=workers), 0.05, CPU)
    assert result.num_workers == workers
    assert result.prefetch_factor == (2 if workers else None)
    assert result.error is None
    assert result.samples_per_s <= 4 * result.batches_per_s  # the last step of an epoch is short
    assert result.tokens_per_s >= 3 * result.samples_per_s  # the shortest example has 3
    assert 0 < result.wait_p50_s <= result.wait_p99_s
    assert result.first_batch_s > 0


def test_the_memory_of_loader_processes_is_counted():
    alone = rss_bytes([os.getpid()])
    assert measure(Toy(), SHAPE, LoaderSettings(num_workers=2), 0.02, CPU).rss_bytes > alone * 1.2


@pytest.mark.parametrize("persistent", [False, True])
def test_a_round_leaves_no_process_behind(persistent):
    settings = LoaderSettings(num_workers=2, persistent_workers=persistent)
    measure(Toy(), SHAPE, settings, 0.02, CPU)
    assert multiprocessing.active_children() == []


def test_the_rounds_are_summed_up_by_medians_and_their_spread():
    results = compare(Toy(), SHAPE, NONE_AND_ONE, QUICK, CPU)
    assert [r.num_workers for r in results] == [0, 1]
    assert all(r.tokens_per_s > 0 and r.spread_ratio >= 0 for r in results)


@pytest.mark.parametrize(
    ("store", "words"),
    [(RaisesInAWorker(), "too many open files"), (KillsItsWorker(), "DataLoader worker (pid")],
)
def test_a_setting_that_fails_is_a_row_with_its_error(store, words):
    none, one = compare(store, SHAPE, NONE_AND_ONE, QUICK, CPU)
    assert none.error is None and none.tokens_per_s > 0
    assert words in one.error and one.tokens_per_s is None
    assert recommend([none, one])[0] == none
    assert multiprocessing.active_children() == []


def test_nothing_is_recommended_where_every_setting_fails():
    results = compare(RaisesEverywhere(), SHAPE, NONE_AND_ONE, QUICK, CPU)
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
