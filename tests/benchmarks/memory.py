"""What --dry-run tells about memory, beside the peak of the run: `--only memory`.

Every case is a run of six steps on Alpaca, batches of 8.
A run with saves keeps a copy of its state.
"""

import json
import sys
from pathlib import Path

from tests.benchmarks.training import run

NUM_STEPS = 6
TWO = "--nproc-per-node 2"
CHECKPOINTING = "--set train.activation_checkpointing=true"
CASES = [
    *(f"{model} --dtype {d}" for model in ("tiny", "small") for d in ("float32", "bfloat16")),
    *(
        f"minimind-3 --dtype {dtype} {options}".strip()
        for dtype in ("float32", "bfloat16")
        for options in ("", CHECKPOINTING, TWO, f"{TWO} --strategy fsdp", "--save-interval 2")
    ),
]


def told_and_measured(store: Path, folder: Path, cases: list[str]) -> list[list[str]]:
    """A row for each case: what was told, the peak of the rank with most, and their ratio."""
    rows = []
    for number, case in enumerate(cases):
        model, *options = case.split()
        command: list[object] = [sys.executable, "-m", "sftctl", "train", "--model", model]
        command += ["--data", store, "--batch-size", 8, "--max-steps", NUM_STEPS, "--device", "cpu"]
        command += ["--save-interval", 0, "--output-dir", folder / str(number), *options]
        told = json.loads(run([*command, "--dry-run", "--json"]))["memory"]["total_bytes"]
        run(command)
        lines = (folder / str(number) / "metrics.jsonl").read_text().splitlines()
        peak = max(json.loads(line)["peak_memory_bytes"] for line in lines)
        rows.append([case, f"{told / 1e6:,.0f} MB", f"{peak / 1e6:,.0f} MB", f"{told / peak:.2f}"])
        print(" ".join(rows[-1]), file=sys.stderr, flush=True)
    return rows
