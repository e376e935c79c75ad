"""`make bench`: every table of docs/benchmarks.md, measured in one run, alternating, medians.

Wants a quiet machine and the data set and tokenizer named by --alpaca and --tokenizer.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks.checkpoints import resuming, saving
from tests.benchmarks.loader import against_training, against_trl
from tests.benchmarks.prepare import preparing, preparing_memory

TABLES = ["start", "training", "prepare", "checkpoints", "loader", "loader-agreement"]
SHARED = Path(__file__).parents[3] / "shared" / "data"


def main() -> None:
    """Run what was asked for, print Markdown."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--only", choices=TABLES, help="one table")
    parser.add_argument("--alpaca", type=Path, default=SHARED / "alpaca_en_demo.json")
    parser.add_argument("--tokenizer", type=Path, default=SHARED / "minimind_tokenizer")
    downloads = Path(os.environ.get("SFTCTL_REAL", ".real"))
    parser.add_argument("--downloads", type=Path, default=downloads, help="what pip fetched")
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.only in (None, "start"):
        print(start_table(rounds=9))
    if options.only in (None, "training"):
        print(training_table(options))
    if options.only in (None, "prepare"):
        print(prepare_tables(options))
    if options.only in (None, "checkpoints"):
        print(checkpoints_table(options))
    for name, measured in (("loader", against_trl), ("loader-agreement", against_training)):
        if options.only in (None, name):
            print(loader_table(options, measured))


def start_table(rounds: int) -> str:
    """What it costs to print help, against a bare interpreter."""
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "sftctl --help": [sys.executable, "-m", "sftctl", "--help"],
        "sftctl train --help": [sys.executable, "-m", "sftctl", "train", "--help"],
        "sftctl train --epoch 2 (a wrong flag)": [
            *(sys.executable, "-m", "sftctl", "train", "--epoch", "2")
        ],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds + 1):
        for name, command in commands.items():
            started = time.perf_counter()
            subprocess.run(command, capture_output=True, check=False)
            times[name].append(time.perf_counter() - started)
    rows = [[name, f"{statistics.median(seconds[1:]):.3f} s"] for name, seconds in times.items()]
    return table(["command", f"median of {rounds}"], rows)


def training_table(options: argparse.Namespace) -> str:
    """One epoch over the same examples with the same first weights, each in its own process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = prepare(options, folder)
        results: dict[str, list[dict[str, Any]]] = {"sftctl": [], "transformers Trainer": []}
        for number in range(options.rounds):
            results["sftctl"].append(train_ours(store, folder / f"run-{number}"))
            results["transformers Trainer"].append(train_theirs(store, folder / f"hf-{number}"))
    ours, theirs = results.values()
    ratios = [a["tokens_per_s"] / b["tokens_per_s"] for a, b in zip(ours, theirs, strict=True)]
    memory = [a["peak_bytes"] / b["peak_bytes"] for a, b in zip(ours, theirs, strict=True)]
    rows = [
        [
            name,
            f"{median(runs, 'tokens_per_s'):.0f}",
            f"{median(runs, 'peak_bytes') / 1e9:.2f} GB",
        ]
        for name, runs in results.items()
    ]
    rows.append(["ratio, median (min to max)", spread(ratios), spread(memory)])
    head = ["", "real tokens/s", "peak RSS"]
    return table(head, rows)


def prepare_tables(options: argparse.Namespace) -> str:
    """ShareGPT against what people use, and memory at two sizes of input."""
    with tempfile.TemporaryDirectory() as name:
        rates = preparing(options.downloads, Path(name))
        memory = preparing_memory(options.downloads, Path(name))
    compared = table(["", "MB/s of its input", "times as fast"], rates)
    return compared + "\n" + table(["input", "peak memory", "MB/s"], memory)


def checkpoints_table(options: argparse.Namespace) -> str:
    """What a save costs the loop, and a resume from far away its user."""
    with tempfile.TemporaryDirectory() as name:
        store = prepare(options, Path(name))
        rows = saving(store, Path(name), options.rounds) + resuming(Path(name), options.rounds)
        return table(["", f"median of {options.rounds}"], rows)


def loader_table(
    options: argparse.Namespace, measured: Callable[[Path, int], tuple[list[str], list[list[str]]]]
) -> str:
    """Batches a second on the whole file."""
    with tempfile.TemporaryDirectory() as name:
        rows = len(json.loads(options.alpaca.read_text()))
        whole = argparse.Namespace(**{**vars(options), "examples": rows})
        return table(*measured(prepare(whole, Path(name)), options.rounds))


def prepare(options: argparse.Namespace, folder: Path) -> Path:
    """A store of `examples` rows, evenly spaced over the file: its first ones are longer."""
    rows = json.loads(options.alpaca.read_text())
    rows = [rows[i * len(rows) // options.examples] for i in range(options.examples)]
    (folder / "rows.json").write_text(json.dumps(rows))
    command = [*sftctl("prepare-data"), str(folder / "rows.json"), "--max-seq-len", "512"]
    command += ["--tokenizer", str(options.tokenizer), "--output", str(folder / "store")]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "store"


def train_ours(store: Path, run: Path) -> dict[str, Any]:
    """`sftctl train`, read from its metrics.jsonl."""
    command = [*sftctl("train"), "--model", "minimind-3", "--data", str(store), "--epochs", "1"]
    command += ["--batch-size", "8", "--dtype", "float32", "--device", "cpu"]
    command += ["--save-interval", "0", "--output-dir", str(run)]
    subprocess.run(command, check=True, capture_output=True)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "tokens_per_s": sum(m["num_tokens"] for m in lines) / sum(m["step_time_s"] for m in lines),
        "peak_bytes": max(m["peak_memory_bytes"] for m in lines),
    }


def train_theirs(store: Path, folder: Path) -> dict[str, Any]:
    """tests/benchmarks/hf_trainer.py, which prints one JSON line last."""
    command = [sys.executable, "-m", "tests.benchmarks.hf_trainer", str(store), str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def sftctl(*arguments: str) -> list[str]:
    """The command line of this checkout."""
    return [sys.executable, "-m", "sftctl", *arguments]


def median(runs: list[dict[str, Any]], key: str) -> float:
    """Over rounds."""
    return statistics.median(run[key] for run in runs)


def spread(values: list[float]) -> str:
    """`2.10 (2.05 to 2.14)`."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


if __name__ == "__main__":
    main()
