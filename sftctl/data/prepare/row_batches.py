"""Batches of raw rows, and how a batch becomes examples and ledger notes."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sftctl.config.schema import DataConfig, Format
from sftctl.data.conversations.conversation import Conversation, from_text
from sftctl.data.example import ExampleArrays, TokenizedExample
from sftctl.data.ledger import BadRow, Note, SourceLine
from sftctl.data.manifest import SPLITS, Audit
from sftctl.data.masks.overflow import ExampleMaker
from sftctl.data.masks.shortcut import Renderer
from sftctl.data.prepare.audit import audit
from sftctl.data.prepare.duplicates import Digests, SeenDigests
from sftctl.data.reading.rows import Raw, raw_rows
from sftctl.data.reading.sources import Source
from sftctl.model.tokenizer.tokenizer import ChatTokenizer

_CHECKED_AT_FIRST = 32  # rows of each file's first batch that the reference encodes too
_CHECKED_LATER = 1  # and rows of each later batch


@dataclass(frozen=True, slots=True)
class InputFile:
    """File number `number` of a store; a share `val_fraction` of its rows goes to validation."""

    number: int
    source: Source
    val_fraction: float


@dataclass(frozen=True, slots=True)
class RawBatch:
    """Rows of input file number `source`, not parsed yet."""

    rows: list[tuple[SourceLine, Raw]]
    source: int
    val_fraction: float
    num_to_check: int  # rows on which the fast engine is compared with the reference


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PreparedBatch:
    """The result of a RawBatch: examples of each split, and notes on rows that lost anything."""

    source: int
    num_rows: int
    num_bytes: int
    examples: dict[str, ExampleArrays]
    notes: list[Note]
    audit: Audit
    rows_checked: int  # rows on which the fast engine and the reference agreed
    digests: Digests  # of the rows kept
    shapes: Counter[str]  # rows by shape, without the rows that have none


def raw_batches(files: Sequence[InputFile], batch_bytes: int) -> Iterator[RawBatch]:
    """The rows of all files, in order, in batches of about `batch_bytes`."""
    for file in files:
        num_to_check = _CHECKED_AT_FIRST
        for rows in _by_size(raw_rows(file.source.path, file.source.name), batch_bytes):
            yield RawBatch(rows, file.number, file.val_fraction, num_to_check)
            num_to_check = _CHECKED_LATER


def _by_size(
    rows: Iterable[tuple[SourceLine, Raw]], batch_bytes: int
) -> Iterator[list[tuple[SourceLine, Raw]]]:
    batch, size = [], 0
    for row in rows:
        batch.append(row)
        size += _num_bytes(row[1])
        if size >= batch_bytes:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _num_bytes(raw: Raw) -> int:
    return len(raw) if isinstance(raw, bytes) else 0


@dataclass(frozen=True, slots=True)
class RowPreparation:
    """How rows become examples: the tokenizer, the settings, and the rows to leave out."""

    tokenizer: ChatTokenizer
    data: DataConfig
    held_out: SeenDigests  # rows of the validation files
    maker: ExampleMaker
    checked_maker: ExampleMaker  # compares the fast engine with the reference

    @classmethod
    def of(
        cls, tokenizer: ChatTokenizer, data: DataConfig, held_out: SeenDigests
    ) -> "RowPreparation":
        """A preparation whose makers share one renderer, which caches the template's layouts."""
        renderer = Renderer(tokenizer, data.train_on)
        maker = ExampleMaker(tokenizer, renderer, data.example_tokens, data.overflow)
        checked = replace(maker, tokenizer=tokenizer.checked())
        return cls(tokenizer, data, held_out, maker, checked)


def prepare_rows(batch: RawBatch, preparation: RowPreparation) -> PreparedBatch:
    """Parse, render, tokenize, mask and fit the rows of a batch, in any process."""
    tokenizer, data = preparation.tokenizer, preparation.data
    examples: dict[str, list[TokenizedExample]] = {split: [] for split in SPLITS}
    notes: list[Note] = []
    digests: list[int] = []
    shapes: Counter[str] = Counter()
    rows_checked = 0
    for source, raw in batch.rows:
        is_checked = tokenizer.is_fast and rows_checked < batch.num_to_check
        maker = preparation.checked_maker if is_checked else preparation.maker
        try:
            conversation = _conversation(raw, data.format, source)
            shapes[conversation.shape] += 1
            fitted, found = maker.examples(conversation)
            _refuse_held_out(conversation, preparation.held_out, fitted)
        except BadRow as problem:
            notes.append(Note.of(problem, source))
            continue
        notes += found
        rows_checked += is_checked
        if fitted:
            digests.append(conversation.digest)
        is_validation = _draw(conversation) < batch.val_fraction
        examples["validation" if is_validation else "train"] += fitted
    packed = {split: ExampleArrays.pack(rows) for split, rows in examples.items()}
    limit, train_on = data.example_tokens, data.train_on
    audits = [audit(arrays, tokenizer, limit, train_on) for arrays in packed.values()]
    return PreparedBatch(
        source=batch.source,
        num_rows=len(batch.rows),
        num_bytes=sum(_num_bytes(raw) for _, raw in batch.rows),
        examples=packed,
        notes=notes,
        audit=sum(audits, Audit()),
        rows_checked=rows_checked,
        digests=np.array(digests, dtype=np.uint64),
        shapes=shapes,
    )


def _conversation(raw: Raw, format: Format, source: SourceLine) -> Conversation:
    if isinstance(raw, BadRow):
        raise raw
    return from_text(raw, format, source)


def _refuse_held_out(
    row: Conversation, held_out: SeenDigests, examples: list[TokenizedExample]
) -> None:
    """BadRow if the same conversation is in the validation files."""
    if row.digest in held_out:
        message = f"{row.source}: the same conversation is in the validation inputs"
        num_tokens = sum(example.num_tokens for example in examples)
        raise BadRow("in_validation", message, "remove the row", num_tokens)


def _draw(conversation: Conversation) -> float:
    """A number in [0, 1) that depends on the conversation alone: a row never changes its split."""
    return (conversation.digest >> 32) / 2**32
