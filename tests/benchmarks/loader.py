"""The loader against torch's DataLoader with TRL's collator, and against training itself.

`python -m tests.benchmarks --only loader` and `--only loader-agreement`.
"""

import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from sftctl.bench.measure import endless_batches, measure
from sftctl.config.load import load_config
from sftctl.data.loading.loader import LoaderSettings, StepLoader
from sftctl.data.loading.microbatch import StepBatch
from sftctl.data.step_shape import StepShape
from sftctl.data.store import TokenStore
from sftctl.metrics import StepMetrics
from sftctl.train import run as training
from sftctl.train.engine.state import TrainState
from sftctl.train.engine.step import StepRules
from sftctl.train.opening import new_session
from sftctl.train.stop import StopRequest
from sftctl.world import ALONE, World

BATCH_SIZE = 16
WORKERS = (0, 1, 2)
SECONDS = 1.0
TURNS, BATCHES_OF_A_TURN = 20, 100
OURS, TRL = "sftctl", "DataLoader with TRL's collator"
CPU = torch.device("cpu")


def _settings(num_workers: int) -> LoaderSettings:
    return LoaderSettings(num_workers=num_workers, persistent_workers=num_workers > 0)


def ours(store_path: Path, num_workers: int) -> float:
    """Batches a second, as bench-loader measures them."""
    settings = _settings(num_workers)
    result = measure(lambda: _our_loader(store_path, settings), settings, CPU, seconds=SECONDS)
    return result.batches_per_s or 0.0


def _our_loader(store_path: Path, settings: LoaderSettings) -> StepLoader:
    shape = StepShape(
        seed=0,
        global_batch_size=BATCH_SIZE,
        micro_batch_tokens=2048,
        cut_for_ranks=1,
        rank=0,
        world_size=1,
    )
    return StepLoader(TokenStore.open(store_path), shape, settings)


def trl(store_path: Path, num_workers: int) -> float:
    """The same examples as TRL keeps them: shuffled lists of numbers, padded by its collator."""
    batches = _endless(_trl_loader(store_path, num_workers))
    for _ in range(1 + 2 * num_workers):
        next(batches)
    started, number = time.perf_counter(), 0
    while time.perf_counter() - started < SECONDS:
        for tensor in next(batches).values():
            tensor.to(CPU)
        number += 1
    return number / (time.perf_counter() - started)


def _trl_loader(store_path: Path, num_workers: int) -> "DataLoader[Any]":
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    store = TokenStore.open(store_path)
    rows = [
        {
            "input_ids": example.input_ids.tolist(),
            "completion_mask": example.loss_mask.astype(int).tolist(),
        }
        for example in (store[index] for index in range(len(store)))
    ]
    return DataLoader(
        rows,  # type: ignore[arg-type]
        batch_size=BATCH_SIZE,
        shuffle=True,
        collate_fn=DataCollatorForLanguageModeling(pad_token_id=0),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
    )


def _endless(loader: Any) -> Iterator[Any]:
    for _ in count():
        yield from loader


def by_processor_time(store_path: Path, num_workers: int) -> float:
    """TRL's processor time for a batch over ours, in turns in this process with one thread.

    It hardly depends on what else the machine does. Loader processes are not counted.
    """
    torch.set_num_threads(1)
    contenders = (
        endless_batches(_our_loader(store_path, _settings(num_workers))),
        _endless(_trl_loader(store_path, num_workers)),
    )
    used = [0.0, 0.0]
    for _ in range(TURNS):
        for which, batches in enumerate(contenders):
            began = time.process_time()
            for _ in range(BATCHES_OF_A_TURN):
                next(batches)
            used[which] += time.process_time() - began
    return used[1] / used[0]


def train(store_path: Path, num_workers: int) -> float:
    """Batches a second of `run_training`'s loop, with a step that only takes its batch.

    The session, its store, its loader and `training_steps` are those of a real run. Only the
    model's work is left out.
    """
    keys = {
        "data.path": str(store_path),
        "data.num_workers": num_workers,
        "model.name": "tiny",
        "train.batch_size": BATCH_SIZE,
        "train.device": "cpu",
        "train.epochs": 10**6,
        "output_dir": str(store_path.parent / f"run-{os.getpid()}"),
    }
    training.train_step = _take  # type: ignore[attr-defined]
    with StopRequest() as stop, new_session(load_config(None, keys), ALONE, stop) as session:
        steps = training.training_steps(session)
        for _ in range(1 + 2 * num_workers):
            next(steps)
        started, number = time.perf_counter(), 0
        while time.perf_counter() - started < SECONDS:
            next(steps)
            number += 1
        return number / (time.perf_counter() - started)


def _take(
    state: TrainState, batch: StepBatch, rules: StepRules, world: World, data_wait_s: float
) -> StepMetrics:
    for micro_batch in batch.micro_batches:
        micro_batch.to(world.device)
    num_tokens = sum(micro_batch.num_tokens for micro_batch in batch.micro_batches)
    state.progress.advance(rules.steps_per_epoch, batch.num_examples, num_tokens)
    return StepMetrics(
        step=state.progress.step,
        epoch=batch.epoch,
        loss=0.0,
        grad_norm=0.0,
        learning_rate=0.0,
        num_tokens=num_tokens,
        num_target_tokens=batch.num_target_tokens,
        num_padding_tokens=0,
        examples_digest=0,
        step_time_s=data_wait_s,
        data_wait_s=data_wait_s,
        peak_memory_bytes=0,
    )


def alternating(
    store: Path, rounds: int, contestants: list[tuple[str, Callable[[Path, int], float]]]
) -> dict[tuple[str, int], list[float]]:
    """Batches a second of each contender and number of workers, each measured in a process."""
    cases = [(name, workers) for workers in WORKERS for name, _ in contestants]
    functions = dict(contestants)
    found: dict[tuple[str, int], list[float]] = {case: [] for case in cases}
    for number in range(rounds):
        for name, workers in cases if number % 2 == 0 else reversed(cases):
            found[name, workers].append(_apart(functions[name], store, workers))
    return found


def _apart(function: Callable[[Path, int], float], store: Path, workers: int) -> float:
    """Measure in a forked process, so that nothing is left from the round before."""
    context = multiprocessing.get_context("fork")
    ours_end, theirs = context.Pipe()

    def run() -> None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - progress bars
        theirs.send(function(store, workers))

    process = context.Process(target=run)
    process.start()
    theirs.close()
    value: float = ours_end.recv()
    process.join()
    return value


def against_trl(store: Path, rounds: int) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table; the last two compare the best settings and the work."""
    found = alternating(store, rounds, [(OURS, ours), (TRL, trl)])
    medians = {case: statistics.median(values) for case, values in found.items()}
    rows = [
        [f"{name}, {workers} workers", _spread(found[name, workers])] for name, workers in found
    ]
    best = {name: max(v for (n, _), v in medians.items() if n == name) for name in (OURS, TRL)}
    rows.append(["best / best", f"{best[OURS] / best[TRL]:.1f}"])
    rows.append(["by processor time, 0 workers", f"{_apart(by_processor_time, store, 0):.1f}"])
    return ["batch 16, length 512", "batches/s, median (min to max)"], rows


def against_training(store: Path, rounds: int) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table: bench-loader and the training loop, for each number of workers."""
    found = alternating(store, rounds, [("sweep", ours), ("training", train)])
    rows = []
    for workers in WORKERS:
        sweep, trained = found["sweep", workers], found["training", workers]
        ratio = statistics.median(sweep) / statistics.median(trained)
        rows.append([str(workers), _spread(sweep), _spread(trained), f"{ratio:.2f}"])
    return ["workers", "bench-loader, batches/s", "training's loop, batches/s", "ratio"], rows


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"
