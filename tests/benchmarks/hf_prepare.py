"""Prepare the same rows with TRL or datasets.map, in a process of its own; prints one JSON line.

`trl`: SFTTrainer's dataset preparation with assistant_only_loss. `map`: datasets.map with an
assistant mask, in the few lines that scripts use. Both get SmolLM2's template with generation
marks, because they can't mask without them. They get only rows with an assistant turn, because TRL
aborts on any other. Only the preparation is timed, without imports and without reading the file.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

MAX_LENGTH = 2048
TEMPLATE = (
    "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}"
    "{% endgeneration %}{{ '\n' }}{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def main(way: str, rows_path: Path, tokenizer_path: Path, num_processes: int) -> None:
    """Prepare the messages of a JSON-lines file and print the seconds that it took."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
    tokenizer.chat_template = TEMPLATE
    with rows_path.open(encoding="utf-8") as file:
        rows = Dataset.from_list([json.loads(line) for line in file])
    prepare = {"trl": with_trl, "map": with_map}[way]
    print(json.dumps({"seconds": prepare(rows, tokenizer, num_processes)}))


def with_trl(rows: Dataset, tokenizer: PreTrainedTokenizerFast, num_processes: int) -> float:
    """Make an SFTTrainer with a toy model, so that it does little more than prepare its data."""
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder,
            assistant_only_loss=True,
            max_length=MAX_LENGTH,
            dataset_num_proc=num_processes,
            use_cpu=True,
            report_to=[],
            bf16=False,
        )
        started = time.perf_counter()
        SFTTrainer(model, args=arguments, train_dataset=rows, processing_class=tokenizer)
        return time.perf_counter() - started


def with_map(rows: Dataset, tokenizer: PreTrainedTokenizerFast, num_processes: int) -> float:
    """One call of datasets.map."""

    def tokenized(row: dict[str, Any]) -> dict[str, Any]:
        encoded = tokenizer.apply_chat_template(
            row["messages"],
            return_dict=True,
            return_assistant_tokens_mask=True,
            truncation=True,
            max_length=MAX_LENGTH,
        )
        return {"input_ids": encoded["input_ids"], "mask": encoded["assistant_masks"]}

    started = time.perf_counter()
    rows.map(tokenized, remove_columns=rows.column_names, num_proc=num_processes)
    return time.perf_counter() - started


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
