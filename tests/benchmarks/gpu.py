"""Training on one GPU: `make bench-gpu`, written for at most eight minutes.

It has never run on a GPU. `--device cpu --model tiny --steps 3` tries the script without one.
Two models: the shape of Qwen3-0.6B with random weights, and SmolLM2-135M. Each is trained by
`sftctl`, by transformers' Trainer and by TRL with packing, in turns, on the same examples. Then a
run is killed and resumed, and compared with one that was not.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from sftctl.model.load import load_model
from sftctl.model.tokenizer.tokenizer import load_tokenizer
from sftctl.train.engine.flops import model_flops
from tests.benchmarks import training
from tests.benchmarks.__main__ import SHARED, table

H100_FLOPS_PER_S = 989e12
"""The dense bfloat16 rate that NVIDIA states for an H100 or H200 (SXM)."""
QWEN3 = {
    "vocab_size": 151_936, "hidden_size": 1024, "intermediate_size": 3072, "head_dim": 128,
    "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
    "max_position_embeddings": 4096, "tie_word_embeddings": True,
}  # fmt: skip
RIVALS = ("trainer --bf16", "trl-packing --bf16")
SAVE_INTERVAL, KILLED_AT = 4, 6  # steps


def main() -> None:
    """Measure both models and print a table for each, then what a kill and a resume changed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--alpaca", type=Path, default=SHARED / "alpaca_en_demo.json")
    parser.add_argument("--tokenizer", type=Path, default=SHARED / "minimind_tokenizer")
    parser.add_argument("--model", action="append", help="in place of the two")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--peak", type=float, default=H100_FLOPS_PER_S, help="the card's FLOP/s")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = options.model or [str(qwen3(folder, options.tokenizer)), str(training.smollm2())]
        for number, model in enumerate(models):
            room = folder / str(number)
            room.mkdir()
            tokenizer = model if model.endswith(".gguf") else str(options.tokenizer)
            store = training.store_of(options.alpaca, tokenizer, room)
            print(f"{Path(model).name}\n\n{speed(options, model, store, room)}", flush=True)
            print(f"{resumed(options, model, store, room)}\n", flush=True)


def qwen3(folder: Path, tokenizer: Path) -> Path:
    """A model directory with the shape of Qwen3-0.6B, random weights and MiniMind's tokenizer."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(Qwen3Config(**QWEN3), dtype=torch.bfloat16)
    model.save_pretrained(folder / "qwen3-0.6b-shape")
    load_tokenizer(str(tokenizer)).hf.save_pretrained(folder / "qwen3-0.6b-shape")
    return folder / "qwen3-0.6b-shape"


def speed(options: argparse.Namespace, model: str, store: Path, folder: Path) -> str:
    """Real tokens per second and peak memory of each contender, and sftctl's MFU."""
    of_all = (model, options.batch_size, options.steps)
    device = ("--device", options.device)
    contenders = {"sftctl": training.ours(*of_all, *device, "--dtype", "bfloat16")}
    for name in RIVALS:
        words = f"{name} --device {options.device}"
        contenders[training.RIVALS.get(name, name)] = training.rival(words, *of_all)
    found = training.alternating(contenders, store, folder, options.rounds)
    body, head = model_flops(load_model(model, load_tokenizer(f"{store}/tokenizer"), seed=0))
    done = max(
        body * result["tokens_per_s"] + head * result["target_tokens_per_s"]
        for result in found["sftctl"]
    )
    return f"{table(*training.compared(found))}\nMFU of sftctl: {done / options.peak:.1%}\n"


def resumed(options: argparse.Namespace, model: str, store: Path, folder: Path) -> str:
    """A sentence: how the steps after kill -9 and a resume compare with a run without a kill."""
    command = [sys.executable, "-m", "sftctl", "train", "--model", model, "--data", str(store)]
    command += ["--batch-size", str(options.batch_size), "--max-steps", str(2 * KILLED_AT)]
    command += ["--device", options.device, "--save-interval", str(SAVE_INTERVAL)]
    whole, killed = folder / "whole", folder / "killed"
    training.run([*command, "--output-dir", whole])
    process = subprocess.Popen([*command, "--output-dir", str(killed)], stderr=subprocess.DEVNULL)
    while process.poll() is None and len(steps_of(killed)) < KILLED_AT:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    training.run([sys.executable, "-m", "sftctl", "resume", killed])
    pairs = list(zip(steps_of(whole), steps_of(killed), strict=True))
    digests = sum(a["examples_digest"] == b["examples_digest"] for a, b in pairs)
    losses = max(abs(a["loss"] - b["loss"]) for a, b in pairs)
    return (
        f"killed after step {KILLED_AT} and resumed: {digests} of {len(pairs)} digests equal, "
        f"largest difference of a step's loss {losses:.2g}"
    )


def steps_of(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that are whole."""
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


if __name__ == "__main__":
    main()
