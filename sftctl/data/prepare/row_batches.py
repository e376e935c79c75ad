"""A batch of raw rows becomes examples and ledger notes, in any process: values in, values out."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from sftctl.data.conversations.conversation import Conversation, from_text
from sftctl.data.example import ExampleArrays, TokenizedExample
from sftctl.data.ledger import BadRow, Note, SourceLine
from sftctl.data.manifest import SPLITS, Audit
from sftctl.data.masks.overflow import ExampleMaker
from sftctl.data.masks.shortcut import Renderer
from sftctl.data.prepare.audit import audit
from sftctl.data.prepare.duplicates import Digests, SeenDigests
from sftctl.data.prepare.settings import PrepareSettings
from sftctl.data.reading.rows import Raw, raw_rows
from sftctl.data.reading.sources import Source
from sftctl.model.tokenizer.tokenizer import ChatTokenizer

_BATCH_BYTES = 1 << 20
_CHECKED_AT_FIRST = 32  # rows of each input's first batch that the reference encodes too
_CHECKED_LATER = 1  # and rows of each later batch


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
    num_to_check: int  # of the rows: these the fast engine is compared on with the reference


@dataclass(frozen=True, slots=True, eq=False)
class PreparedBatch:
    """What became of a RawBatch: examples of each split, and a note for each row not kept whole."""

    source: int
    num_rows: int
    num_bytes: int
    examples: dict[str, ExampleArrays]
    notes: list[Note]
    audit: Audit
    rows_checked: int  # rows on which fast engine and reference were seen to agree
    digests: Digests  # of the rows kept
    shapes: Counter[str]  # of the rows that have one


def raw_batches(inputs: Sequence[Input]) -> Iterator[RawBatch]:
    """The rows of all inputs, in order; how they are cut depends on the inputs alone."""
    for item in inputs:
        num_to_check = _CHECKED_AT_FIRST
        for rows in _by_size(raw_rows(item.source.path, item.source.name)):
            yield RawBatch(rows, item.number, item.val_fraction, num_to_check)
            num_to_check = _CHECKED_LATER


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


@dataclass(slots=True)
class BatchPreparation:
    """Parse, render, tokenize, mask and fit; the call that workers run."""

    tokenizer: ChatTokenizer
    settings: PrepareSettings
    held_out: SeenDigests = field(default_factory=SeenDigests)  # rows of the validation inputs
    _fitting: ExampleMaker = field(init=False)
    _checked_fitting: ExampleMaker = field(init=False)

    def __post_init__(self) -> None:
        settings = self.settings
        renderer = Renderer(self.tokenizer, settings.train_on)
        self._fitting = ExampleMaker(
            self.tokenizer, renderer, settings.max_seq_len, settings.overflow
        )
        self._checked_fitting = replace(self._fitting, tokenizer=self.tokenizer.checked())

    def __call__(self, batch: RawBatch) -> PreparedBatch:
        examples: dict[str, list[TokenizedExample]] = {split: [] for split in SPLITS}
        notes: list[Note] = []
        digests: list[int] = []
        shapes: Counter[str] = Counter()
        rows_checked = 0
        for source, raw in batch.rows:
            is_checked = self.tokenizer.is_fast and rows_checked < batch.num_to_check
            try:
                conversation = self._conversation(raw, source)
                shapes[conversation.shape] += 1
                fitting = self._checked_fitting if is_checked else self._fitting
                fitted = self._examples(conversation, fitting, notes)
            except BadRow as problem:
                notes.append(Note.of(problem, source))
                continue
            rows_checked += is_checked
            if fitted:
                digests.append(conversation.digest)
            is_validation = _draw(conversation) < batch.val_fraction
            examples["validation" if is_validation else "train"] += fitted
        packed = {split: ExampleArrays.pack(rows) for split, rows in examples.items()}
        limit, train_on = self.settings.max_seq_len, self.settings.train_on
        audits = [audit(rows, self.tokenizer, limit, train_on) for rows in packed.values()]
        return PreparedBatch(
            batch.source,
            len(batch.rows),
            sum(len(raw) for _, raw in batch.rows if isinstance(raw, bytes)),
            packed,
            notes,
            sum(audits, Audit()),
            rows_checked,
            np.array(digests, dtype=np.uint64),
            shapes,
        )

    def _conversation(self, raw: Raw, source: SourceLine) -> Conversation:
        if isinstance(raw, BadRow):
            raise raw
        return from_text(raw, self.settings.format, source)

    def _examples(
        self, row: Conversation, fitting: ExampleMaker, notes: list[Note]
    ) -> list[TokenizedExample]:
        """The examples of a row within max_seq_len; what is lost is noted."""
        examples, found = fitting.examples(row)
        if row.digest in self.held_out:
            message = f"{row.source}: the same conversation is in the validation inputs"
            num_tokens = sum(example.num_tokens for example in examples)
            raise BadRow("in_validation", message, "remove the row", num_tokens)
        notes += found
        return examples


def _draw(conversation: Conversation) -> float:
    """A number in [0, 1) that depends on what is said alone: a row never changes sides."""
    return (conversation.digest >> 32) / 2**32
