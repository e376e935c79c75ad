"""Batches of raw rows, and how a batch becomes examples and ledger notes."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sftctl.config.schema import DataConfig, Format
from sftctl.data.conversations.column_map import parse_columns
from sftctl.data.conversations.columns import Columns
from sftctl.data.conversations.conversation import Conversation, from_text
from sftctl.data.conversations.special_text import SpecialTexts, refusal, where
from sftctl.data.example import ExampleArrays, TokenizedExample
from sftctl.data.ledger import BadRow, Note, OutOfTimeRow, SourceLine
from sftctl.data.manifest import SPLITS, Audit
from sftctl.data.masks.overflow import ExampleMaker
from sftctl.data.masks.shortcut import Renderer
from sftctl.data.masks.weights import with_reasoning_weight
from sftctl.data.prepare.audit import RowRemarks, audit, unknown_token
from sftctl.data.prepare.duplicates import Digests, SeenDigests
from sftctl.data.prepare.row_options import RowOptions
from sftctl.data.prepare.validation_split import refuse_held_out, split_of
from sftctl.data.reading.columnar import is_columnar, unread_columns
from sftctl.data.reading.rows import Raw, raw_rows
from sftctl.data.reading.sources import Source
from sftctl.errors import DataError
from sftctl.model.tokenizer.template_errors import (
    TemplateFailed,
    TemplateRanOut,
    hung_in_compilation,
    ran_out,
)
from sftctl.model.tokenizer.template_limits import SECONDS, Pulse
from sftctl.model.tokenizer.tokenizer import ChatTokenizer

# How many rows are also encoded with the slow reference tokenizer and compared:
_CHECKED_AT_FIRST = 32  # in the first batch of each file
_CHECKED_LATER = 1  # in each later batch
SHOWN = 5
"""At most so many rows with special text are named."""

_MOST_OUT_OF_TIME = 3  # after so many rows with a too slow template, the command ends


@dataclass(frozen=True, slots=True)
class InputFile:
    """Input file number `number`. The fraction `val_fraction` of its rows goes to validation."""

    number: int
    source: Source
    val_fraction: float


@dataclass(frozen=True, slots=True)
class RawBatch:
    """Unparsed rows of input file number `source`."""

    rows: list[tuple[SourceLine, Raw]]
    source: int
    val_fraction: float
    is_columnar: bool  # from a Parquet or Arrow file
    unread: tuple[str, ...]  # columns of such a file that were not even loaded
    num_to_check: int  # rows on which the fast engine is compared with the reference

    @property
    def num_bytes(self) -> int:
        return sum(_num_bytes(raw) for _, raw in self.rows)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PreparedBatch:
    """The result of a RawBatch: examples of each split, ledger notes, and counts."""

    source: int
    num_rows: int
    num_bytes: int
    examples: dict[str, ExampleArrays]
    notes: list[Note]
    audit: Audit
    rows_checked: int  # rows on which the fast engine and the reference agreed
    digests: Digests  # digests of the kept rows
    rows_out_of_time: int  # rows for which the chat template took too long
    shapes: Counter[str]  # number of rows by shape, without rows of unknown shape
    used: set[str]  # columns that were read
    left: set[str]  # columns that have a value in a row and were not read there
    rows_unpadded: int
    special: list[str]  # places of the first rows with special text
    first_remarks: dict[str, str]  # remark -> place of the first such row


def raw_batches(
    files: Sequence[InputFile], batch_bytes: int, format: Format = "auto", columns: Columns = ()
) -> Iterator[RawBatch]:
    """The rows of all files, in order, in batches of about `batch_bytes`."""
    for file in files:
        path, name = file.source.path, file.source.name
        num_to_check = _CHECKED_AT_FIRST
        columnar = is_columnar(path)
        unread = unread_columns(path, name, columns) if columnar else ()
        for rows in _by_size(raw_rows(path, name, format, columns), batch_bytes):
            yield RawBatch(rows, file.number, file.val_fraction, columnar, unread, num_to_check)
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
    """Everything that is needed to turn rows into examples."""

    tokenizer: ChatTokenizer
    data: DataConfig
    held_out: SeenDigests  # rows of the validation files
    maker: ExampleMaker
    checked_maker: ExampleMaker  # compares the fast engine with the reference
    columns: Columns = ()
    special: SpecialTexts = SpecialTexts()
    row_options: RowOptions = RowOptions()

    @classmethod
    def of(
        cls, tokenizer: ChatTokenizer, data: DataConfig, held_out: SeenDigests
    ) -> "RowPreparation":
        """A preparation for this tokenizer and these settings.

        Its two makers share one renderer, which caches the layouts of the template.
        """
        renderer = Renderer(tokenizer, data.train_on)
        maker = ExampleMaker(
            tokenizer,
            renderer,
            data.example_tokens,
            data.overflow,
            drops_leading=data.leading_assistant == "drop",
        )
        checked = replace(maker, tokenizer=tokenizer.checked())
        special = SpecialTexts(tokenizer.special_texts, "\n".join(tokenizer.templates.values()))
        columns = parse_columns(data.columns)
        options = RowOptions.of(tokenizer, data)
        return cls(tokenizer, data, held_out, maker, checked, columns, special, options)

    def conversation(self, raw: Raw, source: SourceLine, *, from_arrow: bool) -> Conversation:
        """The conversation in a row. Raises BadRow if the row can't be read."""
        if isinstance(raw, BadRow):
            raise raw
        row = from_text(raw, self.data.format, source, self.columns, from_arrow=from_arrow)
        return self.row_options.checked(row) if row.options else row

    def special_text(self, raw: Raw, row: Conversation) -> tuple[Conversation, str | None]:
        """The row, and the place of its first special text (None: no special text).

        The text is kept, or escaped, or refused with BadRow, as configured.
        """
        if not isinstance(raw, bytes) or not self.special.may_hold(raw):
            return row, None
        found = self.special.first(row)
        if found is None:
            return row, None
        if self.data.special_text == "refuse":
            raise refusal(row, *found)
        if self.data.special_text == "escape":
            row = self.special.escaped(row)
        return row, where(row, *found)


def prepare_rows(batch: RawBatch, pulse: Pulse, preparation: RowPreparation) -> PreparedBatch:
    """Make the examples of a batch of rows. Must run in the main thread of its process.

    `pulse` shows the parent process which row is being prepared. Raises ConfigError if the template
    is broken.
    """
    with preparation.tokenizer.limits.for_rows(pulse, batch.num_bytes):
        pulse[0] = 0
        preparation.tokenizer.compile_templates()
        return _prepared(batch, pulse, preparation)


def without_row(batch: RawBatch, number: int) -> RawBatch:
    """The batch, in which row `number` (from 1) is replaced by an error: the template hung on it.

    Number 0 means that the template hung while it was compiled. This raises ConfigError.
    """
    if number == 0:
        raise hung_in_compilation(SECONDS)
    source, _ = batch.rows[number - 1]
    hung = _failed(ran_out(None, SECONDS), source)
    return replace(batch, rows=[*batch.rows[: number - 1], (source, hung), *batch.rows[number:]])


def refuse_slow_template(num_rows: int, tokenizer: ChatTokenizer) -> None:
    """Raise DataError if the template was too slow for several rows: others would be slow too."""
    if num_rows >= _MOST_OUT_OF_TIME:
        raise DataError(
            f"the chat template of {tokenizer.name} needs more than "
            f"{tokenizer.limits.seconds:g} s for one row; this happened on {num_rows} rows",
            "use another chat template: prepare-data --chat-template FILE",
        )


def _failed(problem: TemplateFailed, source: SourceLine) -> BadRow:
    """The error for a row on which the template failed."""
    kind = OutOfTimeRow if isinstance(problem, TemplateRanOut) else BadRow
    return kind("template_refused", f"{source}: {problem.message}", problem.hint)


def _prepared(batch: RawBatch, pulse: Pulse, preparation: RowPreparation) -> PreparedBatch:
    tokenizer, data = preparation.tokenizer, preparation.data
    examples: dict[str, list[TokenizedExample]] = {split: [] for split in SPLITS}
    notes: list[Note] = []
    digests: list[int] = []
    shapes: Counter[str] = Counter()
    used: set[str] = set()
    left: set[str] = {*batch.unread}
    special: list[str] = []
    remarks = RowRemarks(data.train_on, unknown_token(tokenizer))
    rows_checked = rows_unpadded = rows_out_of_time = 0
    for number, (source, raw) in enumerate(batch.rows, 1):
        pulse[0] = number
        is_checked = tokenizer.is_fast and rows_checked < batch.num_to_check
        maker = preparation.checked_maker if is_checked else preparation.maker
        try:
            conversation = preparation.conversation(raw, source, from_arrow=batch.is_columnar)
            shapes[conversation.shape] += 1
            used.update(conversation.used)
            left.update(conversation.left)
            conversation, where_special = preparation.special_text(raw, conversation)
            conversation = with_reasoning_weight(conversation, data.reasoning_weight)
            fitted, found = maker.examples(conversation)
            refuse_held_out(conversation, preparation.held_out, fitted)
        except (BadRow, TemplateFailed) as problem:
            refused = problem if isinstance(problem, BadRow) else _failed(problem, source)
            rows_out_of_time += isinstance(refused, OutOfTimeRow)
            refuse_slow_template(rows_out_of_time, tokenizer)
            notes.append(Note.of(refused, source))
            continue
        notes += found
        rows_checked += is_checked
        rows_unpadded += conversation.was_padded
        if where_special is not None:
            special.append(where_special)
        if fitted:
            digests.append(conversation.digest)
            remarks.add(conversation, fitted)
        examples[split_of(conversation, batch.val_fraction)] += fitted
    packed = {split: ExampleArrays.pack(rows) for split, rows in examples.items()}
    return PreparedBatch(
        source=batch.source,
        num_rows=len(batch.rows),
        num_bytes=batch.num_bytes,
        examples=packed,
        notes=notes,
        audit=_audited(packed, len(special), remarks, preparation),
        rows_checked=rows_checked,
        digests=np.array(digests, dtype=np.uint64),
        rows_out_of_time=rows_out_of_time,
        shapes=shapes,
        used=used,
        left=left,
        rows_unpadded=rows_unpadded,
        special=special[:SHOWN],
        first_remarks=remarks.first,
    )


def _audited(
    packed: dict[str, ExampleArrays],
    num_special: int,
    remarks: RowRemarks,
    preparation: RowPreparation,
) -> Audit:
    limit, train_on = preparation.data.example_tokens, preparation.data.train_on
    audits = (audit(arrays, preparation.tokenizer, limit, train_on) for arrays in packed.values())
    return sum(audits, remarks.audit() + Audit(rows_with_special_text=num_special))
