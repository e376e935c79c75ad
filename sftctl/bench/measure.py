"""One setting of the loader, for a moment."""

import os
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from multiprocessing import active_children

import numpy as np
import torch

from sftctl.bench.machine import rss_bytes
from sftctl.data.loader import LoaderSettings, StepLoader, StepShape
from sftctl.data.microbatch import Examples, StepBatch
from sftctl.metrics import LoaderResult


def measure(
    store: Examples,
    shape: StepShape,
    settings: LoaderSettings,
    seconds: float,
    device: torch.device,
) -> LoaderResult:
    """One round: a fresh loader, its first batch, its warm-up, then batches for `seconds`.

    Every batch is copied to the device, as training does. Nothing is computed in between, so a
    wait is all the time from one batch to the next.
    """
    begun = time.perf_counter()
    batches = _endless(StepLoader(store, shape, settings))
    _copy(next(batches), device)
    first_batch_s = time.perf_counter() - begun
    for _ in range(settings.num_workers * settings.prefetch_factor):
        _copy(next(batches), device)  # these were being made before the clock starts
    waits: list[float] = []
    num_samples = num_tokens = 0
    start = last = time.perf_counter()
    while last - start < seconds:
        batch = next(batches)
        _copy(batch, device)
        num_samples += batch.num_examples
        num_tokens += sum(micro_batch.num_tokens for micro_batch in batch.micro_batches)
        now = time.perf_counter()
        waits.append(now - last)
        last = now
    elapsed_s = last - start
    return replace(
        _row(settings),
        batches_per_s=len(waits) / elapsed_s,
        samples_per_s=num_samples / elapsed_s,
        tokens_per_s=num_tokens / elapsed_s,
        first_batch_s=first_batch_s,
        wait_p50_s=float(np.quantile(waits, 0.5)),
        wait_p99_s=float(np.quantile(waits, 0.99)),
        rss_bytes=rss_bytes([os.getpid(), *(child.pid or 0 for child in active_children())]),
    )


def attempt(
    store: Examples,
    shape: StepShape,
    settings: LoaderSettings,
    seconds: float,
    device: torch.device,
) -> LoaderResult:
    """The same; what breaks a setting becomes its `error`."""
    try:
        with warnings.catch_warnings():  # torch's advice on workers and cores is a note of ours
            warnings.filterwarnings("ignore", "This DataLoader will create")
            return measure(store, shape, settings, seconds, device)
    # Whatever breaks a setting (no more files, memory, a killed process) is a finding about it.
    except Exception as error:
        last_line = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
        # torch's re-raise is a cycle through its own frame, which would keep the processes alive.
        traceback.clear_frames(error.__traceback__)
    return replace(_row(settings), error=last_line)


def _row(settings: LoaderSettings) -> LoaderResult:
    return LoaderResult(
        num_workers=settings.num_workers,
        pin_memory=settings.pin_memory,
        prefetch_factor=settings.prefetch_factor if settings.num_workers > 0 else None,
        persistent_workers=settings.persistent_workers,
    )


def _endless(loader: StepLoader) -> Iterator[StepBatch]:
    for epoch in count():
        yield from loader.steps(epoch)


def _copy(batch: StepBatch, device: torch.device) -> None:
    for micro_batch in batch.micro_batches:
        micro_batch.to(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # a copy from pinned memory returns before it is done
