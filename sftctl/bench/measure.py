"""Measure one setting of the loader on one rank."""

import os
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from multiprocessing import active_children

import numpy as np
import torch

from sftctl.bench.result import LoaderResult
from sftctl.data.loading.loader import LoaderSettings, StepLoader
from sftctl.data.loading.microbatch import StepBatch
from sftctl.machine import usage_of

_MATRIX_WIDTH = 512  # products of such matrices imitate the work of a model on a CPU


def measure(
    new_loader: Callable[[], StepLoader],
    settings: LoaderSettings,
    device: torch.device,
    *,
    seconds: float,
    step_time_s: float | None = None,
    ready: Callable[[], None] = lambda: None,
) -> LoaderResult:
    """Measure one round: start a loader, warm it up, then load batches for `seconds`.

    Each batch is copied to the device, as in training. Nothing is computed between batches, so the
    wait is all the time from one batch to the next. If `step_time_s` is given, a second measurement
    follows, also for `seconds`, with the work of a step between batches. `ready` is called after
    the warm-up. It returns when all other ranks have finished their warm-up too.
    """
    started = time.perf_counter()
    batches = endless_batches(new_loader())
    _copy(next(batches), device)
    first_batch_s = time.perf_counter() - started
    for _ in range(settings.num_workers * settings.prefetch_factor):
        _copy(next(batches), device)  # use the prefetched batches before the measurement
    ready()
    waits: list[float] = []
    num_samples = num_tokens = 0
    start = last = time.perf_counter()
    while last - start < seconds:
        batch = next(batches)
        _copy(batch, device)
        for micro_batch in batch.micro_batches:
            num_samples += len(micro_batch.examples)
            num_tokens += micro_batch.num_tokens
        now = time.perf_counter()
        waits.append(now - last)
        last = now
    elapsed_s = last - start
    usage = usage_of([os.getpid(), *(child.pid or 0 for child in active_children())])
    return replace(
        LoaderResult.of(settings),
        batches_per_s=len(waits) / elapsed_s,
        samples_per_s=num_samples / elapsed_s,
        tokens_per_s=num_tokens / elapsed_s,
        first_batch_s=first_batch_s,
        wait_p50_s=float(np.quantile(waits, 0.5)),
        wait_p99_s=float(np.quantile(waits, 0.99)),
        rss_bytes=usage.rss_bytes,
        pss_bytes=usage.pss_bytes,
        shm_bytes=usage.shm_bytes,
        open_files=usage.open_files,
        step_wait_s=step_time_s and _mean_wait_in_a_step(batches, device, step_time_s, seconds),
    )


def failure_as_result(
    settings: LoaderSettings, measured: Callable[[], LoaderResult]
) -> LoaderResult:
    """The result of `measured`. If it raises an exception: a result with the text in `error`."""
    try:
        with warnings.catch_warnings():  # the report has a note about workers and cores
            warnings.filterwarnings("ignore", "This DataLoader will create")
            return measured()
    # Every failure of a setting (too many files, no memory, a killed process) is a result.
    except Exception as error:
        last_line = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
        # The traceback refers to torch's frames, which would keep the loader processes alive.
        traceback.clear_frames(error.__traceback__)
    return LoaderResult.of(settings, last_line)


def _mean_wait_in_a_step(
    batches: Iterator[StepBatch], device: torch.device, step_time_s: float, seconds: float
) -> float:
    """The mean wait for a batch in seconds, with the work of a step before each batch.

    A long step is shortened, so that several steps fit into `seconds`. The loader processes then
    have less time than in training. So in training the wait is not longer.
    """
    work_s = min(step_time_s, seconds / 4)
    waits: list[float] = []
    started = time.perf_counter()
    while not waits or time.perf_counter() - started < seconds:
        _work(device, work_s)
        before = time.perf_counter()
        batch = next(batches)
        waits.append(time.perf_counter() - before)
        _copy(batch, device)
    return float(np.mean(waits))


def _work(device: torch.device, seconds: float) -> None:
    """Imitate the work of a model. On a CPU, loader processes and the model share the cores."""
    if device.type != "cpu":
        time.sleep(seconds)
        return
    matrix = torch.ones(_MATRIX_WIDTH, _MATRIX_WIDTH)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        torch.mm(matrix, matrix)


def endless_batches(loader: StepLoader) -> Iterator[StepBatch]:
    """The batches of epoch 0, 1, 2, …"""
    for epoch in count():
        yield from loader.steps(epoch)


def _copy(batch: StepBatch, device: torch.device) -> None:
    for micro_batch in batch.micro_batches:
        micro_batch.to(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # copies from pinned memory are asynchronous
