"""Train with transformers' Trainer or TRL on a store's examples, with their defaults.

The same examples, first weights, batch size, learning rate, precision and threads as `sftctl
train`. They draw and pad batches in their own way. The last line printed is JSON.
tests/benchmarks/training.py runs each in a process of its own.
"""

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import torch
from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments

from sftctl.data.store import TokenStore
from sftctl.model.adapter.lora import short_names, target_layers
from sftctl.model.load import load_model
from sftctl.model.tokenizer.tokenizer import load_tokenizer


class Clock(TrainerCallback):  # type: ignore[misc]
    """Measures from the end of the first step, which warms up, to the end of the last."""

    started = 0.0
    seconds = 0.0

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self.started if self.started else 0.0
        self.started = self.started or time.perf_counter()


class Counted:
    """A collator that records how many tokens of each batch are real."""

    def __init__(self, collate: Any) -> None:
        self.collate, self.num_tokens = collate, list[int]()

    def __call__(self, rows: list[Any], *args: Any) -> Any:
        batch = self.collate(rows, *args)
        mask = batch.get("attention_mask")
        real = mask.sum() if mask is not None else batch["input_ids"].numel()
        self.num_tokens.append(int(real))
        return batch


def rows_of(store: TokenStore) -> list[dict[str, list[int]]]:
    """Token ids, and which of them are targets."""
    return [
        {"input_ids": example.input_ids.tolist(), "assistant_masks": example.loss_mask.tolist()}
        for example in (store[index] for index in range(len(store)))
    ]


def grouped(store: TokenStore, rows: list[Any], batch_size: int, num_batches: int) -> list[Any]:
    """Batches from the full set sorted by length: the best that grouping can do.

    First the middle one, which warms up and does not count, then others evenly spaced.
    """
    order = store.lengths.argsort(kind="stable").tolist()
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    counted = num_batches - 1
    spaced = [batches[(2 * i + 1) * len(batches) // (2 * counted)] for i in range(counted)]
    chosen = [batches[len(batches) // 2], *spaced]
    return [rows[index] for batch in chosen for index in batch]


def labelled(rows: list[dict[str, list[int]]]) -> list[dict[str, list[int]]]:
    """An example in the form that DataCollatorForSeq2Seq needs."""
    return [
        {
            "input_ids": row["input_ids"],
            "labels": [
                token if counts else -100
                for token, counts in zip(row["input_ids"], row["assistant_masks"], strict=True)
            ],
        }
        for row in rows
    ]


def lora_config(model: Any) -> Any:
    """The adapter that `sftctl train --lora` makes, as peft's configuration."""
    from peft import LoraConfig

    targets = short_names(model, target_layers(model, None))
    return LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules=targets)


def make_trainer(options: argparse.Namespace, clock: Clock) -> Any:
    """The other tool's trainer, ready to train."""
    store = TokenStore.open(options.store)
    tokenizer = load_tokenizer(str(options.store / "tokenizer"))
    model, rows = load_model(options.model, tokenizer, seed=0), rows_of(store)
    arguments: dict[str, Any] = {
        "output_dir": str(options.output), "per_device_train_batch_size": options.batch_size,
        "max_steps": options.steps, "learning_rate": 1e-3, "bf16": options.bf16,
        "use_cpu": options.device == "cpu",
        "report_to": [], "save_strategy": "no", "disable_tqdm": True,
    }  # fmt: skip
    adapter = lora_config(model) if options.lora else None
    if adapter is not None:  # a checkpoint after the last step, which is not timed
        arguments |= {"save_strategy": "steps", "save_steps": options.steps, "learning_rate": 2e-4}
    if options.rival in ("trainer", "trainer-grouped"):
        if options.rival == "trainer-grouped":
            rows = grouped(store, rows, options.batch_size, options.steps)
            arguments["train_sampling_strategy"] = "sequential"
        if adapter is not None:
            from peft import get_peft_model

            model = get_peft_model(model, adapter)
        return Trainer(
            model=model,
            args=TrainingArguments(**arguments),
            train_dataset=labelled(rows),
            data_collator=DataCollatorForSeq2Seq(tokenizer.hf),
            callbacks=[clock],
        )
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    config = SFTConfig(**arguments, max_length=512, packing=options.rival == "trl-packing")
    return SFTTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer.hf,
        callbacks=[clock],
        peft_config=adapter,
    )


def main() -> None:
    """Train `steps` steps, of which the first does not count; print a JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("rival", choices=["trainer", "trainer-grouped", "trl", "trl-packing"])
    parser.add_argument("store", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", default="minimind-3")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--lora", action="store_true")
    options = parser.parse_args()
    clock = Clock()
    trainer = make_trainer(options, clock)
    counted = trainer.data_collator = Counted(trainer.data_collator)
    trainer.train()
    result = {
        "tokens_per_s": sum(counted.num_tokens[1 : options.steps]) / clock.seconds,
        "peak_bytes": torch.cuda.max_memory_allocated()
        if options.device == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
