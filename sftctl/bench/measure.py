"""One setting of the loader, for a moment, on one rank."""

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

from sftctl.data.loader import LoaderSettings, StepLoader, StepShape
from sftctl.data.microbatch import Examples, StepBatch
from sftctl.machine import usage_of
from sftctl.metrics import LoaderResult

_COMPUTED = 512  # width of the matrices that stand for a model's work on the CPU


def measure(
    store: Examples,
    shape: StepShape,
    settings: LoaderSettings,
    device: torch.device,
    *,
    seconds: float,
    step_time_s: float | None = None,
    ready: Callable[[], None] = lambda: None,
) -> LoaderResult:
    """One round: a fresh loader, its first batch, its warm-up, then batches for `seconds`.

    Every batch is copied to the device, as training does. Nothing is computed in between, so a
    wait is all the time from one batch to the next. With a step time, as many seconds again with
    the work of a step between the batches. `ready` returns when the other ranks are warm too.
    """
    begun = time.perf_counter()
    batches = _endless(StepLoader(store, shape, settings))
    _copy(next(batches), device)
    first_batch_s = time.perf_counter() - begun
    for _ in range(settings.num_workers * settings.prefetch_factor):
        _copy(next(batches), device)  # these were being made before the clock starts
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
        row_of(settings),
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
        step_wait_s=step_time_s and _wait_in_a_step(batches, device, step_time_s, seconds),
    )


def attempt(
    store: Examples,
    shape: StepShape,
    settings: LoaderSettings,
    device: torch.device,
    *,
    seconds: float,
    step_time_s: float | None = None,
    ready: Callable[[], None] = lambda: None,
) -> LoaderResult:
    """The same; what breaks a setting becomes its `error`."""
    try:
        with warnings.catch_warnings():  # torch's advice on workers and cores is a note of ours
            warnings.filterwarnings("ignore", "This DataLoader will create")
            return measure(
                store, shape, settings, device,
                seconds=seconds, step_time_s=step_time_s, ready=ready,
            )  # fmt: skip
    # Whatever breaks a setting (no more files, memory, a killed process) is a finding about it.
    except Exception as error:
        last_line = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
        # torch's re-raise is a cycle through its own frame, which would keep the processes alive.
        traceback.clear_frames(error.__traceback__)
    return replace(row_of(settings), error=last_line)


def row_of(settings: LoaderSettings) -> LoaderResult:
    """A setting without numbers."""
    return LoaderResult(
        num_workers=settings.num_workers,
        pin_memory=settings.pin_memory,
        prefetch_factor=settings.prefetch_factor if settings.num_workers > 0 else None,
        persistent_workers=settings.persistent_workers,
    )


def _wait_in_a_step(
    batches: Iterator[StepBatch], device: torch.device, step_time_s: float, seconds: float
) -> float:
    """Mean wait for a batch when there is a step's work to do before each.

    A long step is cut short, so that some are seen; loader processes then have less time to be
    ready, so the true wait is never longer than this one.
    """
    pause_s = min(step_time_s, seconds / 4)
    waits: list[float] = []
    begun = time.perf_counter()
    while not waits or time.perf_counter() - begun < seconds:
        _work(device, pause_s)
        asked = time.perf_counter()
        batch = next(batches)
        waits.append(time.perf_counter() - asked)
        _copy(batch, device)
    return float(np.mean(waits))


def _work(device: torch.device, seconds: float) -> None:
    """Keep the processor as busy as a model does: on the CPU loader processes share its cores."""
    if device.type != "cpu":
        time.sleep(seconds)
        return
    matrix = torch.ones(_COMPUTED, _COMPUTED)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        torch.mm(matrix, matrix)


def _endless(loader: StepLoader) -> Iterator[StepBatch]:
    for epoch in count():
        yield from loader.steps(epoch)


def _copy(batch: StepBatch, device: torch.device) -> None:
    for micro_batch in batch.micro_batches:
        micro_batch.to(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # a copy from pinned memory returns before it is done
