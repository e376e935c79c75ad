"""A batch of raw rows becomes examples and ledger notes, in any process: values in, values out."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from sftctl.data.chat import ChatTokenizer, TokenizedExample
from sftctl.data.conversation import Conversation, SourceLine, from_text
from sftctl.data.duplicates import Digests, SeenDigests
from sftctl.data.ledger import Note
from sftctl.data.manifest import SPLITS
from sftctl.data.masks import tokenize
from sftctl.data.reasons import BadRow
from sftctl.data.rows import Raw, raw_rows
from sftctl.data.settings import PrepareSettings
from sftctl.data.sources import Source
from sftctl.data.store import ExampleArrays

_BATCH_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Input:
    """File number `number` of a store; the share `val_fraction` of its rows goes to validation."""

    number: int
    source: Source
    val_fraction: float


@dataclass(frozen=True, slots=True)
class RawBatch:
    """Rows as they stand in input number `source`, not parsed yet."""

    rows: list[tuple[SourceLine, Raw]]
    source: int
    val_fraction: float


@dataclass(frozen=True, slots=True, eq=False)
class PreparedBatch:
    """What became of a RawBatch: examples of each split, and a note for each row not kept whole."""

    source: int
    num_rows: int
    examples: dict[str, ExampleArrays]
    notes: list[Note]
    digests: Digests  # of the rows kept
    shapes: Counter[str]  # of the rows that have one


def raw_batches(inputs: Sequence[Input]) -> Iterator[RawBatch]:
    """The rows of all inputs, in order; how they are cut depends on the inputs alone."""
    for item in inputs:
        for rows in _by_size(raw_rows(item.source.path, item.source.name)):
            yield RawBatch(rows, item.number, item.val_fraction)


def _by_size(rows: Iterable[tuple[SourceLine, Raw]]) -> Iterator[list[tuple[SourceLine, Raw]]]:
    batch, size = [], 0
    for row in rows:
        batch.append(row)
        size += len(row[1]) if isinstance(row[1], bytes) else 0
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
    held_out: SeenDigests = field(default_factory=SeenDigests)  # rows of the validation inputs

    def __call__(self, batch: RawBatch) -> PreparedBatch:
        examples: dict[str, list[TokenizedExample]] = {split: [] for split in SPLITS}
        notes: list[Note] = []
        digests: list[int] = []
        shapes: Counter[str] = Counter()
        for source, raw in batch.rows:
            try:
                conversation = self._conversation(raw, source)
                shapes[conversation.shape] += 1
                fitted = self._examples(conversation, notes)
            except BadRow as problem:
                notes.append(Note.of(problem, source))
                continue
            if fitted:
                digests.append(conversation.digest)
            is_validation = _draw(conversation) < batch.val_fraction
            examples["validation" if is_validation else "train"] += fitted
        packed = {split: ExampleArrays.pack(rows) for split, rows in examples.items()}
        kept = np.array(digests, dtype=np.uint64)
        return PreparedBatch(batch.source, len(batch.rows), packed, notes, kept, shapes)

    def _conversation(self, raw: Raw, source: SourceLine) -> Conversation:
        if isinstance(raw, BadRow):
            raise raw
        return from_text(raw, self.settings.format, source)

    def _examples(self, row: Conversation, notes: list[Note]) -> list[TokenizedExample]:
        """The examples of a row within max_seq_len; what is lost is noted."""
        [example] = tokenize([row], self.tokenizer, self.settings.train_on)
        limit, num_tokens = self.settings.max_seq_len, example.num_tokens
        if row.digest in self.held_out:
            message = f"{row.source}: the same conversation is in the validation inputs"
            raise BadRow("in_validation", message, "remove the row", num_tokens)
        if num_tokens <= limit:
            return [example]
        cut = TokenizedExample(example.input_ids[:limit], example.loss_mask[:limit])
        if self.settings.overflow == "drop":
            notes.append(Note.too_long(row.source, "too_long_dropped", num_tokens))
        elif not cut.num_target_tokens:
            notes.append(Note.too_long(row.source, "no_target", num_tokens))
        else:
            notes.append(Note.too_long(row.source, "truncated", num_tokens - limit))
            return [cut]
        return []


def _draw(conversation: Conversation) -> float:
    """A number in [0, 1) that depends on what is said alone: a row never changes sides."""
    return (conversation.digest >> 32) / 2**32
