"""Whether bfloat16 trains as well as float32: `--only precision`.

minimind-3 on Alpaca with 5% for validation, batches of 8, three seeds; an hour on two quiet cores.
"""

import json
import sys
from pathlib import Path

from tests.benchmarks.training import run

SEEDS = (0, 1, 2)


def validation_losses(rows: Path, tokenizer: str, folder: Path, steps: int) -> list[list[str]]:
    """A row for each seed: both validation losses after `steps` steps, and their difference."""
    store = folder / "store"
    prepare = [sys.executable, "-m", "sftctl", "prepare-data", rows, "--tokenizer", tokenizer]
    run([*prepare, "--max-seq-len", 512, "--val-fraction", 0.05, "--output", store])
    table = []
    for seed in SEEDS:
        losses = []
        for dtype in ("float32", "bfloat16"):
            output = folder / f"{seed}-{dtype}"
            command: list[object] = [sys.executable, "-m", "sftctl", "train", "--data", store]
            command += ["--model", "minimind-3", "--batch-size", 8, "--epochs", 100]
            command += ["--max-steps", steps, "--seed", seed, "--dtype", dtype, "--json"]
            summary = run([*command, "--save-interval", 0, "--output-dir", output])
            losses.append(float(json.loads(summary)["validation_loss"]))
        difference = losses[1] - losses[0]
        table.append([str(seed), *(f"{loss:.4f}" for loss in losses), f"{difference:+.4f}"])
        print(" ".join(table[-1]), file=sys.stderr, flush=True)
    return table
