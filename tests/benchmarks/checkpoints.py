"""The cost of saving and resuming: `python -m tests.benchmarks --only checkpoints`."""

import json
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sftctl.checkpoint.layout import checkpoint_name, read_manifest
from sftctl.checkpoint.save import save_checkpoint
from sftctl.config.optim import OptimConfig
from sftctl.data.example import ExampleArrays, TokenizedExample
from sftctl.data.plan import steps_per_epoch
from sftctl.data.storage.hashes import block_hashes
from sftctl.data.store import TokenStoreWriter
from sftctl.disk import hash_file
from sftctl.jsonio import dump_line, dump_pretty, loads
from sftctl.model.load import load_model
from sftctl.model.tokenizer.tokenizer import load_tokenizer
from sftctl.train.engine.optim import NamedOptimizer, build_optimizer
from sftctl.world import ALONE
from tests.benchmarks.starting import SFTCTL, seconds_to_a_step

SAVE_INTERVAL, NUM_STEPS = 8, 32
FAR_STEP, NUM_EXAMPLES, BATCH_SIZE = 1_000_000, 900_000, 4  # in the fifth epoch


def saving(store: Path, folder: Path, rounds: int) -> list[list[str]]:
    """Rows of a table: runs of minimind-3 with and without saves, alternating."""
    runs: dict[str, list[dict[str, Any]]] = {"with": [], "without": []}
    for number in range(rounds):
        for name, interval in (("with", SAVE_INTERVAL), ("without", 0)):
            runs[name].append(_train(store, folder / f"{name}-{number}", interval))
            shutil.rmtree(folder / f"{name}-{number}")
    copy_s = statistics.median(_seconds_of_a_copy(store) for _ in range(rounds))
    waits = [wait for run in runs["with"] for wait in run["wait_s"]]
    wait_s = statistics.median(waits)
    slower = [a["loop_s"] / b["loop_s"] for a, b in zip(runs["with"], runs["without"], strict=True)]
    memory = [a["peak"] / b["peak"] for a, b in zip(runs["with"], runs["without"], strict=True)]
    saves = [seconds for run in runs["with"] for seconds in run["seconds"]]
    size = runs["with"][0]["num_bytes"] / 1e6
    return [
        ["a checkpoint", f"{size:.0f} MB"],
        ["copying the state in memory", f"{copy_s:.3f} s"],
        ["the loop waits per save, median (max)", f"{wait_s:.3f} s ({max(waits):.3f} s)"],
        ["wait / copy", f"{wait_s / copy_s:.2f}"],
        ["from the request to the verified checkpoint", f"{statistics.median(saves):.1f} s"],
        [f"time with a save every {SAVE_INTERVAL} of {NUM_STEPS} steps / without", _spread(slower)],
        ["its peak RSS / without", _spread(memory)],
    ]  # fmt: skip


def _train(store: Path, run: Path, save_interval: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "sftctl", "train", "--model", "minimind-3", "--keep", "1"]
    command += ["--data", str(store), "--batch-size", "4", "--max-steps", str(NUM_STEPS)]
    command += ["--epochs", "100", "--save-interval", str(save_interval), "--output-dir", str(run)]
    subprocess.run(command, check=True, capture_output=True)
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    *saved, last = [event for event in events if event["event"] == "saved"]
    started = next(event["time"] for event in events if event["event"] == "started")
    return {
        # Until the last save, which every run makes and waits for.
        "loop_s": last["time"] - last["seconds"] - started,
        "wait_s": [event["wait_s"] for event in saved],
        "seconds": [event["seconds"] for event in saved],
        "num_bytes": last["num_bytes"],
        "peak": max(step["peak_memory_bytes"] for step in steps),
    }


def _seconds_of_a_copy(store: Path) -> float:
    """Copy every tensor of the state into memory that was written to before."""
    model = load_model("minimind-3", load_tokenizer(str(store / "tokenizer")), 0)
    weights = dict(model.named_parameters())
    optimizer = build_optimizer(weights, OptimConfig(learning_rate=1e-3))
    tensors = weights | NamedOptimizer(optimizer, weights).state_dict()
    copies = {name: torch.zeros_like(tensor).fill_(0) for name, tensor in tensors.items()}
    started = time.perf_counter()
    with torch.no_grad():
        for name, tensor in tensors.items():
            copies[name].copy_(tensor)
    return time.perf_counter() - started


def resuming(folder: Path, rounds: int) -> list[list[str]]:
    """Time from the command to the first new step, far into a long run and early in a short one.

    Both load the same small model, so the difference is the cost of the position.
    """
    far, near = _run_at(folder / "far", FAR_STEP, NUM_EXAMPLES), _run_at(folder / "near", 1, 64)
    times: dict[Path, list[float]] = {far: [], near: []}
    for number in range(rounds + 1):
        for run, seconds in times.items():
            copy = shutil.copytree(run, folder / f"{run.parent.name}-{number}")
            seconds.append(seconds_to_a_step([*SFTCTL, "resume", str(copy)], Path(copy)))
            shutil.rmtree(copy)
    medians = {run.parent.name: statistics.median(values[1:]) for run, values in times.items()}
    return [
        [f"resume at step {FAR_STEP:,} of {NUM_EXAMPLES:,} examples", f"{medians['far']:.2f} s"],
        ["resume at step 1 of 64 examples, the same model", f"{medians['near']:.2f} s"],
        ["difference", f"{medians['far'] - medians['near']:.2f} s"],
    ]


def _run_at(folder: Path, step: int, num_examples: int) -> Path:
    """A run of the tiny preset at `step`: it is trained briefly, and its counters are raised."""
    folder.mkdir()
    store = _store(folder / "store", num_examples)
    run = folder / "run"
    command = [sys.executable, "-m", "sftctl", "train", "--model", "tiny", "--data", str(store)]
    command += ["--batch-size", str(BATCH_SIZE), "--epochs", "5", "--output-dir", str(run)]
    subprocess.run([*command, "--max-steps", "1"], check=True, capture_output=True)
    config = (run / "config.toml").read_text().replace("max_steps = 1\n", "")
    (run / "config.toml").write_text(config)
    line = loads((run / "metrics.jsonl").read_bytes().splitlines()[0])
    per_epoch = steps_per_epoch(num_examples, BATCH_SIZE)
    lines = b"".join(
        dump_line(line | {"step": number, "epoch": (number - 1) // per_epoch})
        for number in range(1, step + 1)
    )
    (run / "metrics.jsonl").write_bytes(lines)
    path = run / "checkpoints" / checkpoint_name(1)
    manifest = replace(
        read_manifest(path), step=step, epoch=step // per_epoch, step_in_epoch=step % per_epoch,
        metrics_bytes=len(lines),
        examples_seen=step * BATCH_SIZE,
        config={**read_manifest(path).config, "train": {
            k: v for k, v in read_manifest(path).config["train"].items() if k != "max_steps"
        }},
    )  # fmt: skip
    tensors = _tensors_of(path)
    shutil.rmtree(path)
    shutil.rmtree(run / "final")
    save_checkpoint(run / "checkpoints", tensors, manifest, ALONE)
    return run


def _tensors_of(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    tensors = {k: v for shard in path.glob("*.safetensors") for k, v in load_file(shard).items()}
    return tensors | {name: tensors[source] for name, source in read_manifest(path).aliases.items()}


def _store(path: Path, num_examples: int) -> Path:
    """A store of short random examples, with a prepared store's manifest."""
    command = [sys.executable, "-m", "sftctl", "prepare-data", "--output", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    for split in ("train", "validation"):
        shutil.rmtree(path / split)
    rng = np.random.default_rng(0)
    mask = np.array([False, False, False, True, True, True, True, True])
    train, validation = TokenStoreWriter(path / "train"), TokenStoreWriter(path / "validation")
    rows = rng.integers(10, 2000, (num_examples, len(mask)), dtype=np.int32)
    for first in range(0, num_examples, 1000):
        examples = [TokenizedExample(ids, mask) for ids in rows[first : first + 1000]]
        train.extend(ExampleArrays.pack(examples))
    counts = {"train": train.close(), "validation": validation.close()}
    files = {
        str(file.relative_to(path)): hash_file(file)
        for file in path.rglob("*")
        if file.is_file() and file.name != "manifest.json"
    }
    values = loads((path / "manifest.json").read_bytes()) | {
        "files": files, "block_sha256": block_hashes(path, files),
        "splits": counts, "num_examples": num_examples, "num_validation_examples": 0,
        "num_tokens": counts["train"].num_tokens,
        "num_target_tokens": counts["train"].num_target_tokens,
    }  # fmt: skip
    (path / "manifest.json").write_bytes(dump_pretty(values))
    return path


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
