"""Training beside other busy processes, by how OpenMP's threads wait: `--only waiting`.

The preset `small` in float32, in steps of 8 rows. Each competitor is an endless loop in a session
of its own, because Linux shares the cores between sessions first.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

SETTINGS = {
    "sftctl": {},
    "libgomp's default": {"GOMP_SPINCOUNT": "300000"},
    "`OMP_WAIT_POLICY=PASSIVE`": {"OMP_WAIT_POLICY": "PASSIVE"},
    "`GOMP_SPINCOUNT=1000`": {"GOMP_SPINCOUNT": "1000"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
"""A setting of the environment switches sftctl's own choice off."""
NUM_COMPETITORS = (0, 1, 4, 9)
LIMIT_S = 90
"""A training that needs more time is given up."""


def rates_by_setting(store: Path, rounds: int, steps: int) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table: real tokens a second, medians over the rounds."""
    rates: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds):
        for number in NUM_COMPETITORS:
            with competitors(number):
                for name, environment in SETTINGS.items():
                    rate = _rate(store, steps, environment)
                    rates.setdefault((name, number), []).append(rate)
                    print(f"{name}, {number} competitors: {rate:.0f}", file=sys.stderr, flush=True)
    rows = [
        [name, *(f"{statistics.median(rates[name, number]):,.0f}" for number in NUM_COMPETITORS)]
        for name in SETTINGS
    ]
    return ["real tokens/s", *(f"{number} competitors" for number in NUM_COMPETITORS)], rows


@contextlib.contextmanager
def competitors(number: int) -> Iterator[None]:
    """So many busy processes until the end of the block."""
    command = [sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(command, start_new_session=True) for _ in range(number)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def _rate(store: Path, steps: int, environment: dict[str, str]) -> float:
    """Real tokens a second; 0 if the training was given up."""
    command = [sys.executable, "-m", "tests.benchmarks.step_cost", str(store), "--model", "small"]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    try:
        done = subprocess.run(
            [*command, "--steps", str(steps)],
            check=True, capture_output=True, text=True, timeout=LIMIT_S, env=clean | environment,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return 0.0
    return float(json.loads(done.stdout)["real_tokens_per_s"])
