"""Time of planning, and the balance over ranks: `python -m tests.benchmarks --only planning`."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from sftctl.data.loading.microbatch import rounded_up
from sftctl.data.plan import cut_step, deal, plan_epoch
from sftctl.data.store import TokenStore
from sftctl.machine import peak_resident_bytes

SIZES, BATCH_SIZE = (10**6, 10**7, 10**8), 32


def balance(store: Path) -> list[list[str]]:
    """Mean/maximum of the ranks' planned costs, and the share of real tokens."""
    lengths = TokenStore.open(store).lengths
    plan = plan_epoch(lengths, 0, 0, BATCH_SIZE)
    rows = []
    for budget in (1024, 16384):
        for num_ranks in (1, 2, 4, 8):
            means, maxima, real, processed = [], [], 0, 0
            for step in range(len(plan)):
                here = lengths[plan[step]]
                pieces = cut_step(here, budget, num_ranks)
                costs = [piece.cost for piece in pieces]
                loads = [sum(costs[i] for i in hand) for hand in deal(costs, num_ranks)]
                means.append(sum(loads) / num_ranks)
                maxima.append(max(loads))
                real += int(here.sum())
                processed += sum(rounded_up(piece.cost) for piece in pieces)
            evenness = sum(means) / sum(maxima)
            rows.append([f"{budget}", f"{num_ranks}", f"{evenness:.3f}", f"{real / processed:.3f}"])
    return rows


def by_size() -> list[list[str]]:
    """Plan an epoch of each size, in a process of its own."""
    return [
        [
            f"{found['num_examples']:,}",
            f"{found['plan_s']:.2f} s",
            f"{found['peak_bytes'] / 1e6:,.0f} MB",
            f"{found['first_ms']:.3f} ms",
            f"{found['last_ms']:.3f} ms",
        ]
        for found in map(_apart, SIZES)
    ]


def _apart(num_examples: int) -> dict[str, float]:
    code = f"from tests.benchmarks.planning import measure; measure({num_examples})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measure(num_examples: int) -> None:
    """Measure, and print the result as JSON. The peak is what planning adds to the process's."""
    lengths = np.random.default_rng(0).integers(20, 512, num_examples, dtype=np.int32)
    before = peak_resident_bytes()
    started = time.perf_counter()
    plan = plan_epoch(lengths, 0, 0, BATCH_SIZE)
    found: dict[str, float] = {"num_examples": num_examples}
    found["plan_s"] = time.perf_counter() - started
    found["peak_bytes"] = peak_resident_bytes() - before

    def step_ms(steps: range) -> float:
        begun = time.perf_counter()
        for step in steps:
            cut_step(lengths[plan[step]], 1024, 1)
        return (time.perf_counter() - begun) / len(steps) * 1e3

    found["first_ms"] = step_ms(range(200))
    found["last_ms"] = step_ms(range(len(plan) - 201, len(plan) - 1))
    print(json.dumps(found))
