"""transformers' Trainer with its defaults on the examples of a token store: the comparison.

The same examples, first weights, batch size, learning rate and threads as `sftctl train`; batches
are drawn and padded as Trainer does by itself.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from transformers import (
    DataCollatorForSeq2Seq,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from sftctl.data.store import TokenStore
from sftctl.model.load import load_model
from sftctl.model.tokenizer import load_tokenizer


class Clock(TrainerCallback):  # type: ignore[misc]
    """From the beginning of the first step to the end of the last."""

    started = 0.0
    seconds = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.started = self.started or time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds = time.perf_counter() - self.started


def main(store_path: Path, output: Path) -> None:
    """Train one epoch, print a JSON line."""
    store = TokenStore.open(store_path)
    tokenizer = load_tokenizer(str(store_path / "tokenizer"))
    model = load_model("minimind-3", tokenizer, seed=0)
    rows = [
        {
            "input_ids": example.input_ids.tolist(),
            "labels": [
                int(token) if counts else -100
                for token, counts in zip(example.input_ids, example.loss_mask, strict=True)
            ],
        }
        for example in (store[index] for index in range(len(store)))
    ]
    clock = Clock()
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(output),
            per_device_train_batch_size=8,
            num_train_epochs=1,
            learning_rate=1e-3,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(tokenizer.hf),
        callbacks=[clock],
    )
    trainer.train()
    print(
        json.dumps(
            {
                "tokens_per_s": int(store.lengths.sum()) / clock.seconds,
                "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
