"""LoRA beside full fine-tuning, peft with transformers' Trainer, and TRL: `--only adapters`.

SmolLM2-135M on Alpaca. All have the same adapter and the same rows, and compute in bfloat16.
sftctl's two runs have the same passes, so their steps can be compared one by one.
"""

import json
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.benchmarks.training import Contender, Result, ours, rival, run, spread

NUM_STEPS = 4  # of which the first is not counted
BATCH_SIZE = 4
LOSS_STEPS = 60  # of 16 rows, where validation losses are compared
LONGEST_ROW = 256  # tokens, where validation losses are compared
LORA, FULL = "sftctl, LoRA", "sftctl, full fine-tuning"


def contenders(model: str, steps: int) -> dict[str, Contender]:
    """The contenders by name. Each leaves its checkpoint in its folder."""
    options = ("--dtype", "bfloat16")
    lora = ("--lora", "--learning-rate", "2e-4")
    full = ("--learning-rate", "2e-5")
    return {
        LORA: ours(model, BATCH_SIZE, steps, *options, *lora),
        FULL: ours(model, BATCH_SIZE, steps, *options, *full),
        "peft and transformers Trainer": rival("trainer --lora --bf16", model, BATCH_SIZE, steps),
        "TRL with peft": rival("trl --lora --bf16", model, BATCH_SIZE, steps),
    }


def with_sizes(contender: Contender) -> Contender:
    """The same contender; its result also has the bytes of its checkpoint and of its weights."""

    def measured(store: Path, folder: Path) -> Result:
        result = contender(store, folder)
        [checkpoint] = [*folder.glob("checkpoints/step-*"), *folder.glob("checkpoint-*")]
        place = folder / "final" if (folder / "final").is_dir() else checkpoint
        weights = [*place.glob("adapter_model.safetensors"), *place.glob("model*.safetensors")]
        result["checkpoint_bytes"] = _bytes(file for file in checkpoint.rglob("*"))
        result["weights_bytes"] = _bytes(weights)
        return result

    return measured


def _bytes(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files if file.is_file())


def compared(found: dict[str, list[Result]]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table: medians, and sftctl's LoRA against each other contender."""
    first = found[LORA]
    rows = []
    for name, results in found.items():
        pairs = [*zip(first, results, strict=True)]
        faster = [a["tokens_per_s"] / b["tokens_per_s"] for a, b in pairs]
        smaller = [a["peak_bytes"] / b["peak_bytes"] for a, b in pairs]
        rows.append(
            [
                name,
                f"{statistics.median(result['tokens_per_s'] for result in results):.0f}",
                f"{statistics.median(result['peak_bytes'] for result in results) / 1e9:.2f} GB",
                f"{results[-1]['checkpoint_bytes'] / 1e6:,.1f} MB",
                f"{results[-1]['weights_bytes'] / 1e6:,.1f} MB",
                *(["", ""] if results is first else [spread(faster), spread(smaller)]),
            ]
        )
    head = ["", "real tokens/s", "peak RSS", "checkpoint", "weights written at the end"]
    compared = [f"{what} of sftctl's LoRA, compared with this row" for what in ("speed", "RSS")]
    return [*head, *compared], rows


def step_ratio(found: dict[str, list[Result]]) -> str:
    """The time of a LoRA step over that of the full step on the same passes."""
    ratios = [
        lora / full
        for a, b in zip(found[LORA], found[FULL], strict=True)
        for lora, full in zip(a["step_times_s"], b["step_times_s"], strict=True)
    ]
    return f"A LoRA step takes {spread(ratios)} of the full step's time, on the same passes."


def validation_losses(
    rows: Path, model: str, folder: Path, steps: int
) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table: full fine-tuning and LoRA, each at its own default rate."""
    store = folder / "store"
    prepare = [sys.executable, "-m", "sftctl", "prepare-data", rows, "--tokenizer", model]
    run([*prepare, "--max-seq-len", LONGEST_ROW, "--val-fraction", 0.05, "--output", store])
    table = []
    for name, options in {FULL: (), LORA: ("--lora",)}.items():
        output = folder / name.rpartition(" ")[2]
        command: list[object] = [sys.executable, "-m", "sftctl", "train", "--model", model]
        command += ["--data", store, "--batch-size", 16, "--epochs", 2, "--max-steps", steps]
        command += ["--dtype", "bfloat16", "--save-interval", 0, "--output-dir", output]
        run([*command, "--device", "cpu", "--set", f"train.eval_interval={steps // 2}", *options])
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        events = [json.loads(line) for line in (output / "events.jsonl").read_text().splitlines()]
        losses = [one["validation_loss"] for one in events if one["event"] == "evaluation"]
        seconds = statistics.median(line["step_time_s"] for line in lines)
        peak = max(line["peak_memory_bytes"] for line in lines)
        row = [
            name,
            *(f"{loss:.4f}" for loss in losses),
            f"{seconds:.1f} s",
            f"{peak / 1e9:.2f} GB",
        ]
        print(" | ".join(row), file=sys.stderr, flush=True)
        table.append(row)
    head = ["", "validation loss at step 0", *(f"at step {n}" for n in (steps // 2, steps))]
    head += ["median time of a step", "peak RSS"]
    return head, table
