"""Tokenizers, files of rows, stores in memory, and batches compared."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sftctl.config.schema import Format
from sftctl.data.conversations.conversation import Conversation, from_row, from_text
from sftctl.data.example import ExampleArrays, TokenizedExample
from sftctl.data.ledger import BadRow, SourceLine
from sftctl.data.loading.microbatch import MicroBatch, StepBatch
from sftctl.data.reading.rows import raw_rows
from sftctl.model.tokenizer.tokenizer import ChatTokenizer, load_tokenizer

SHARED = Path(__file__).parents[3] / "shared" / "data"

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class CountingTokenizer(ChatTokenizer):
    """Counts how often it renders a conversation."""

    num_renders = 0

    def render(self, *arguments: Any, **keywords: Any) -> str:
        self.num_renders += 1
        return super().render(*arguments, **keywords)


def load(folder: Path, template: str | None = None) -> CountingTokenizer:
    """The tokenizer in a folder, with another chat template if one is given."""
    hf = load_tokenizer(str(folder)).hf
    hf.chat_template = template or hf.chat_template
    return CountingTokenizer(hf, folder.name)


def conversations(path: Path) -> list[Conversation]:
    """All rows of a file. Each of them must hold a conversation."""
    rows = raw_rows(path, path.name)
    return [from_text(text, "auto", source) for source, text in rows if isinstance(text, bytes)]


HERE = SourceLine("rows.jsonl", 7)


def read(row: dict[str, Any], format: Format = "auto") -> Conversation:
    """The conversation in a row, as if it were at rows.jsonl:7."""
    return from_row(row, format, HERE)


def row(question: str, answer: str = "Yes.") -> dict[str, str]:
    """A row in the shape of Alpaca."""
    return {"instruction": question, "output": answer}


def written(path: Path, rows: Iterable[Any]) -> Path:
    """Write JSON lines to `path`. A row that is a string is written as it is."""
    lines = [line if isinstance(line, str) else json.dumps(line) for line in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def file_of(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows_of(path: Path) -> list[tuple[int, Any]]:
    """(line, parsed row) or (line, reason) of every row in a file, which is called rows."""
    return [
        (source.line, row.reason if isinstance(row, BadRow) else json.loads(row))
        for source, row in raw_rows(path, "rows")
    ]


class ToyStore:
    """Random examples of the given lengths; the padding id 0 is in none of them."""

    lengths: npt.NDArray[np.integer]
    target_lengths: npt.NDArray[np.integer]
    target_weights: npt.NDArray[np.floating] | None

    def __init__(
        self,
        lengths: Sequence[int],
        vocab_size: int = 97,
        seed: int = 0,
        *,
        has_weights: bool = False,
    ) -> None:
        rng = np.random.default_rng(seed)
        self.vocab_size = vocab_size
        self.examples = [_example(int(length), vocab_size, rng) for length in lengths]
        self.target_weights = None
        if has_weights:  # every other example has some
            self.examples[::2] = [_weighted(example, rng) for example in self.examples[::2]]
            packed = ExampleArrays.pack(self.examples)
            self.target_weights = packed.target_weights
        self.lengths = np.array([item.num_tokens for item in self.examples], dtype=np.int64)
        self.target_lengths = np.array([item.num_target_tokens for item in self.examples])

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> TokenizedExample:
        return self.examples[index]


def _weighted(example: TokenizedExample, rng: np.random.Generator) -> TokenizedExample:
    weights = rng.choice([0.25, 0.7, 1.0, 3.0], example.num_tokens).astype(np.float32)
    return replace(example, loss_weights=weights * example.loss_mask)


def _example(length: int, vocab_size: int, rng: np.random.Generator) -> TokenizedExample:
    mask = rng.random(length) < 0.5
    mask[-1] = True
    mask[0] = False  # nothing predicts the first token
    return TokenizedExample(rng.integers(1, vocab_size, length, dtype=np.int32), mask)


def same(one: object, other: object) -> bool:
    """Equal in every field and every number."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, (MicroBatch, StepBatch)):
        names = one.__dataclass_fields__
        return all(same(getattr(one, name), getattr(other, name)) for name in names)
    return one == other
