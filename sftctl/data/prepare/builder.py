"""Builds a store in a folder: writes the examples and the ledger, and makes the manifest."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from sftctl.data.ledger import KEPT, Ledger
from sftctl.data.manifest import FORMAT_VERSION, SPLITS, Audit, SourceEntry, StoreManifest
from sftctl.data.prepare.duplicates import SeenDigests
from sftctl.data.prepare.fingerprint import StoreInputs
from sftctl.data.prepare.row_batches import (
    SHOWN,
    InputFile,
    RowPreparation,
    prepare_rows,
    raw_batches,
    refuse_slow_template,
    without_row,
)
from sftctl.data.prepare.workers import Work
from sftctl.data.reading.sources import Source, require_unchanged
from sftctl.data.store import TokenStoreWriter, length_quantiles
from sftctl.environment import usable_cores
from sftctl.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True)
class Progress:
    """How much of a preparation is done."""

    num_rows: int  # rows read
    num_tokens: int  # tokens in the store
    num_bytes: int  # bytes of rows read, decompressed
    total_bytes: int | None  # size of all inputs; None: unknown, because an input is compressed


def silent(progress: Progress) -> None:
    """A progress function that does nothing."""


def build_store(
    folder: Path, made_from: StoreInputs, on_progress: Callable[[Progress], None]
) -> StoreManifest:
    """Write both splits and the ledger into `folder`. Raises DataError if no row is left to train.

    If a row is both in the training files and in the validation files, it is not trained.
    """
    num_train = len(made_from.train)
    share = made_from.data.val_fraction
    train = [InputFile(i, source, share) for i, source in enumerate(made_from.train)]
    validation = [
        InputFile(i, source, 1.0) for i, source in enumerate(made_from.validation, num_train)
    ]
    with StoreBuilder.opened(folder, made_from, on_progress) as builder:
        held_out = builder.add(validation, SeenDigests())
        builder.add(train, held_out)
        return builder.finish()


@dataclass(slots=True)
class StoreBuilder:
    """The open files of a store that is being written, and the counts so far."""

    made_from: StoreInputs
    on_progress: Callable[[Progress], None]
    writers: dict[str, TokenStoreWriter]
    ledger: Ledger
    sources: list[SourceEntry]
    total_bytes: int | None
    rows_read: int = 0
    rows_duplicated: int = 0
    rows_checked: int = 0
    rows_unpadded: int = 0
    special: list[str] = field(default_factory=list)
    first_remarks: dict[str, str] = field(default_factory=dict)
    bytes_read: int = 0
    rows_out_of_time: int = 0
    audit: Audit = field(default_factory=Audit)

    @classmethod
    @contextmanager
    def opened(
        cls, folder: Path, made_from: StoreInputs, on_progress: Callable[[Progress], None]
    ) -> Iterator["StoreBuilder"]:
        """A builder that writes into `folder`. The ledger is closed after the `with` block."""
        with (folder / "ledger.jsonl").open("wb") as file:
            yield cls(
                made_from=made_from,
                on_progress=on_progress,
                writers={split: TokenStoreWriter(folder / split) for split in SPLITS},
                ledger=Ledger(file, made_from.options.strict),
                sources=[
                    SourceEntry(s.name, s.sha256, 0, {}, name=s.source) for s in made_from.sources
                ],
                total_bytes=_total_bytes(made_from.sources),
            )

    def add(self, files: Sequence[InputFile], held_out: SeenDigests) -> SeenDigests:
        """Add all rows of the files, except rows in `held_out`. Returns the digests of the rows."""
        seen = SeenDigests()
        options = self.made_from.options
        preparation = RowPreparation.of(self.made_from.tokenizer, self.made_from.data, held_out)
        work = Work(
            function=partial(prepare_rows, preparation=preparation),
            without_row=without_row,
            while_waiting=lambda: self.on_progress(self._progress()),
            silence_s=2 * preparation.tokenizer.limits.seconds,
        )
        data, columns = self.made_from.data, self.made_from.columns
        batches = raw_batches(files, options.batch_bytes, data.format, columns)
        for batch in work.in_order(batches, options.num_workers or usable_cores()):
            for split, examples in batch.examples.items():
                self.writers[split].extend(examples)
            for note in batch.notes:
                self.ledger.write(note)
            source = self.sources[batch.source]
            dropped: Counter[str] = Counter(
                note.reason for note in batch.notes if note.reason not in KEPT
            )
            self.sources[batch.source] = source.with_more(
                batch.num_rows,
                batch.shapes,
                dropped,
                batch.used,
                batch.left,
                num_examples=len(batch.examples["train"].lengths),
            )
            self.rows_unpadded += batch.rows_unpadded
            self.special = [*self.special, *batch.special][:SHOWN]
            self.first_remarks = batch.first_remarks | self.first_remarks
            self.rows_duplicated += seen.add(batch.digests)
            self.rows_read += batch.num_rows
            self.rows_checked += batch.rows_checked
            self.bytes_read += batch.num_bytes
            self.audit += batch.audit
            self.rows_out_of_time += batch.rows_out_of_time
            refuse_slow_template(self.rows_out_of_time, preparation.tokenizer)
            self.on_progress(self._progress())
        for file in files:
            require_unchanged(file.source)
        return seen

    def _progress(self) -> Progress:
        num_tokens = sum(writer.num_tokens for writer in self.writers.values())
        return Progress(self.rows_read, num_tokens, self.bytes_read, self.total_bytes)

    def finish(self) -> StoreManifest:
        """Close the splits and make the manifest. Raises DataError if there is nothing to train."""
        splits = {split: writer.close() for split, writer in self.writers.items()}
        train, validation = splits["train"], splits["validation"]
        self._require_columns()
        if not train.num_examples:
            raise self._nothing_left(self.sources)
        if self.made_from.validation and not validation.num_examples:
            raise self._nothing_left(self.sources[len(self.made_from.train) :])
        tokenizer, data = self.made_from.tokenizer, self.made_from.data
        dropped = self.ledger.rows_dropped
        return StoreManifest(
            format_version=FORMAT_VERSION,
            fingerprint=self.made_from.fingerprint(),
            tokenizer=tokenizer.name,
            tokenizer_hash=tokenizer.content_hash,
            vocab_size=tokenizer.vocab_size,
            template_hash=tokenizer.template_hash,
            engine=tokenizer.engine,
            engine_reason=tokenizer.engine_reason,
            engine_rows_checked=self.rows_checked,
            max_seq_len=data.example_tokens,
            overflow=data.overflow,
            train_on=data.train_on,
            format=data.format,
            val_fraction=data.val_fraction,
            template_options=data.template_options or {},
            leading_assistant=data.leading_assistant,
            sources=self.sources,
            rows_read=self.rows_read,
            rows_kept=self.rows_read - sum(dropped.values()),
            rows_dropped=dropped,
            rows_truncated=self.ledger.rows_truncated,
            rows_split=self.ledger.rows_split,
            rows_duplicated=self.rows_duplicated,
            tokens_lost=self.ledger.tokens_lost,
            num_examples=train.num_examples,
            num_validation_examples=validation.num_examples,
            num_tokens=train.num_tokens,
            num_target_tokens=train.num_target_tokens,
            length_quantiles=length_quantiles(self.writers["train"].lengths),
            splits=splits,
            audit=self.audit,
            files={},  # filled when all files are written
            reasoning_weight=data.reasoning_weight,
            columns=data.columns,
            special_text=data.special_text,
            special_text_first=self.special,
            date=None if tokenizer.date is None else tokenizer.date.isoformat(),
            rows_unpadded=self.rows_unpadded,
            left_out=list(self.made_from.left_out),
            layout_differs=self.made_from.layout_differs,
            first_rows=self.ledger.first_rows | self.first_remarks,
        )

    def _require_columns(self) -> None:
        """Raise ConfigError if no row has a column that --columns names."""
        known = {name for source in self.sources for name in source.columns_used}
        if not any(source.shapes for source in self.sources):
            return  # no row could be read; the error of `_nothing_left` explains why
        for ours, theirs in self.made_from.columns:
            if theirs not in known:
                raise ConfigError(
                    f"data.columns: {ours}={theirs}: no row has a column {theirs}",
                    f"correct the name, or remove {ours}={theirs}",
                )

    def _nothing_left(self, sources: Sequence[SourceEntry]) -> DataError:
        """The error for inputs without a usable row."""
        held_out = len(sources) < len(self.sources)
        purpose = "validate with" if held_out else "train on"
        rows_read = sum(source.rows for source in sources)
        if not rows_read:
            files = ", ".join(source.file for source in sources)
            return DataError(
                f"{files}: no rows in this file",
                "a row is a JSON object: one per line, or all of them in one array",
            )
        dropped = sum((Counter(source.rows_dropped) for source in sources), Counter())
        reasons = "".join(f"; {reason}: {rows}" for reason, rows in dropped.items())
        where = f"{', '.join(source.file for source in sources)}: " if held_out else ""
        what = f"{where}no row is left to {purpose} out of {rows_read} read{reasons}"
        first = self.ledger.first_dropped_in({source.file for source in sources})
        if first is None:
            return DataError(what, "lower --val-fraction")
        hint = f"; {first.hint}" if first.hint else ""
        return DataError(what, f"the first: {first.message}{hint}")


def _total_bytes(sources: Sequence[Source]) -> int | None:
    """The size of all files; None if a file is compressed. Progress counts uncompressed bytes."""
    if all(source.path.suffix in (".jsonl", ".json") for source in sources):
        return sum(source.path.stat().st_size for source in sources)
    return None
