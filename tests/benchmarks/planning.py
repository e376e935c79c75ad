"""Time of planning, and the balance over ranks: `python -m tests.benchmarks --only planning`."""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from sftctl.data.loading.microbatch import rounded_up
from sftctl.data.plan import cut_step, deal, plan_epoch
from sftctl.data.store import TokenStore

NUM_EXAMPLES, BATCH_SIZE = 10_000_000, 32


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


def ten_million() -> list[list[str]]:
    """Plan an epoch of ten million examples, in a process of its own."""
    code = "from tests.benchmarks.planning import measure; measure()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    return [
        ["planning an epoch of 10 million examples", f"{found['plan_s']:.1f} s"],
        ["peak RSS of its process, the lengths among it", f"{found['peak_bytes'] / 1e9:.2f} GB"],
        ["examples and cut of a step, at the epoch's start", f"{found['first_ms']:.2f} ms"],
        ["at its end", f"{found['last_ms']:.2f} ms"],
        ["of an epoch of 1,000 examples", f"{found['small_ms']:.2f} ms"],
    ]


def measure() -> None:
    """Measure, and print the result as JSON."""
    lengths = np.random.default_rng(0).integers(20, 512, NUM_EXAMPLES).astype(np.int32)
    started = time.perf_counter()
    plan = plan_epoch(lengths, 0, 0, BATCH_SIZE)
    found = {"plan_s": time.perf_counter() - started}
    found["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    small = plan_epoch(lengths[:1000], 0, 0, BATCH_SIZE)

    def step_ms(of: object, steps: range) -> float:
        begun = time.perf_counter()
        for step in steps:
            cut_step(lengths[of[step]], 1024, 1)  # type: ignore[index]
        return (time.perf_counter() - begun) / len(steps) * 1e3

    found["first_ms"] = step_ms(plan, range(200))
    found["last_ms"] = step_ms(plan, range(len(plan) - 201, len(plan) - 1))
    found["small_ms"] = step_ms(small, range(len(small) - 1))
    print(json.dumps(found))
