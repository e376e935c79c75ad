"""A batch of raw rows becomes examples and ledger notes, in any process: values in, values out."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sftctl import jsonio
from sftctl.data.chat import ChatTokenizer, TokenizedExample
from sftctl.data.conversation import Conversation, SourceLine, from_row
from sftctl.data.ledger import Note
from sftctl.data.manifest import SPLITS
from sftctl.data.masks import tokenize
from sftctl.data.settings import PrepareSettings
from sftctl.data.sources import parse_row, raw_rows
from sftctl.data.store import ExampleArrays

_BATCH_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Input:
    """A file of rows; the share `val_fraction` of them goes to validation."""

    path: Path
    sha256: str
    val_fraction: float


@dataclass(frozen=True, slots=True)
class RawBatch:
    """Rows as they stand in input number `source`, not parsed yet."""

    rows: list[tuple[SourceLine, bytes]]
    source: int
    val_fraction: float


@dataclass(frozen=True, slots=True, eq=False)
class PreparedBatch:
    """What became of a RawBatch: examples of each split, and a note for each row not kept whole."""

    source: int
    num_rows: int
    examples: dict[str, ExampleArrays]
    notes: list[Note]


def raw_batches(inputs: Sequence[Input]) -> Iterator[RawBatch]:
    """The rows of all inputs, in order; how they are cut depends on the inputs alone."""
    for number, item in enumerate(inputs):
        for rows in _by_size(raw_rows(item.path)):
            yield RawBatch(rows, number, item.val_fraction)


def _by_size(rows: Iterable[tuple[SourceLine, bytes]]) -> Iterator[list[tuple[SourceLine, bytes]]]:
    batch, size = [], 0
    for row in rows:
        batch.append(row)
        size += len(row[1])
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


@dataclass(frozen=True, slots=True)
class BatchPreparation:
    """Parse, render, tokenize, mask and fit; the call that workers run."""

    tokenizer: ChatTokenizer
    settings: PrepareSettings

    def __call__(self, batch: RawBatch) -> PreparedBatch:
        examples: dict[str, list[TokenizedExample]] = {split: [] for split in SPLITS}
        notes: list[Note] = []
        for source, text in batch.rows:
            conversation = from_row(parse_row(text, source), self.settings.format, source)
            fitted = self._examples(conversation, notes)
            is_validation = _draw(conversation) < batch.val_fraction
            examples["validation" if is_validation else "train"] += fitted
        packed = {split: ExampleArrays.pack(rows) for split, rows in examples.items()}
        return PreparedBatch(batch.source, len(batch.rows), packed, notes)

    def _examples(self, row: Conversation, notes: list[Note]) -> list[TokenizedExample]:
        """The examples of a row within max_seq_len; what is lost is noted."""
        [example] = tokenize([row], self.tokenizer, self.settings.train_on)
        limit, num_tokens = self.settings.max_seq_len, example.num_tokens
        if num_tokens <= limit:
            return [example]
        cut = TokenizedExample(example.input_ids[:limit], example.loss_mask[:limit])
        if self.settings.overflow == "drop":
            notes.append(Note(row.source, "too_long_dropped", num_tokens))
        elif not cut.num_target_tokens:
            notes.append(Note(row.source, "no_target", num_tokens))
        else:
            notes.append(Note(row.source, "truncated", num_tokens - limit))
            return [cut]
        return []


def _draw(conversation: Conversation) -> float:
    """A number in [0, 1) that depends on what is said alone: a row never changes sides."""
    content = jsonio.dump_canonical([conversation.messages, conversation.tools])
    return int.from_bytes(hashlib.sha256(content).digest()[:4]) / 2**32
