"""How the time of a step grows with its tokens: `python -m tests.benchmarks --only growth`.

The preset `small` in float32. The sizes take turns in one process, so that what else runs on the
machine affects all of them.
"""

import os
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

from sftctl.bench.measure import endless_batches
from sftctl.config.optim import OptimConfig
from sftctl.config.schema import RunConfig, TrainConfig
from sftctl.data.loading.loader import LoaderSettings, StepLoader
from sftctl.data.step_shape import step_shape
from sftctl.data.store import TokenStore
from sftctl.model.load import load_model
from sftctl.train.engine.build import build_state
from sftctl.train.engine.step import StepRules, train_step
from sftctl.world import ALONE

BASE, FACTORS = 16, (0.25, 0.5, 1, 2, 4)  # examples of a step


@dataclass
class _Size:
    """The steps of one size: their tokens and what they took."""

    tokens: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # for each token
    cpu_seconds: list[float] = field(default_factory=list)


def time_by_tokens(store_path: Path, rounds: int) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table: medians of `rounds` steps of each size, after one to warm up."""
    store = TokenStore.open(store_path)
    config = RunConfig(optim=OptimConfig(learning_rate=1e-3), train=TrainConfig(dtype="float32"))
    model = load_model("small", store.load_tokenizer(), 0)
    state = build_state(model, config, ALONE, int(store.lengths.max()))
    rules = StepRules(config.optim, 0, 10**6, 10**6)
    sizes = {factor: _Size() for factor in FACTORS}
    shapes = {factor: step_shape(TrainConfig(batch_size=int(BASE * factor))) for factor in FACTORS}
    batches = {
        factor: endless_batches(StepLoader(store, shape, LoaderSettings()))
        for factor, shape in shapes.items()
    }
    for number in range(rounds + 1):
        for factor, size in sizes.items():
            batch = next(batches[factor])
            began, used = time.perf_counter(), sum(os.times()[:2])
            tokens = train_step(state, batch, rules, ALONE, 0.0).num_tokens
            if number:
                size.tokens.append(tokens)
                size.seconds.append((time.perf_counter() - began) / tokens)
                size.cpu_seconds.append((sum(os.times()[:2]) - used) / tokens)
    one = sizes[1]
    rows = [
        [
            f"{factor:g}",
            f"{statistics.median(size.tokens):,.0f}",
            f"{statistics.median(size.seconds) * 1e6:.0f} µs",
            f"{statistics.median(size.seconds) / statistics.median(one.seconds):.2f}",
            f"{statistics.median(size.cpu_seconds) / statistics.median(one.cpu_seconds):.2f}",
        ]
        for factor, size in sizes.items()
    ]
    head = ["times the tokens", "real tokens of a step", "time of a token", "of that of 1"]
    return [*head, "the same, processor time"], rows
