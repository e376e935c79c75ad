"""Builds a store in a folder: writes examples and the ledger, and counts for the manifest."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from sftctl.data.ledger import Ledger
from sftctl.data.manifest import FORMAT_VERSION, SPLITS, Audit, SourceEntry, StoreManifest
from sftctl.data.prepare.duplicates import SeenDigests
from sftctl.data.prepare.fingerprint import StoreInputs
from sftctl.data.prepare.row_batches import InputFile, RowPreparation, prepare_rows, raw_batches
from sftctl.data.prepare.workers import in_order
from sftctl.data.reading.sources import Source
from sftctl.data.store import TokenStoreWriter
from sftctl.environment import usable_cores
from sftctl.errors import DataError


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a preparation is."""

    num_rows: int  # read
    num_tokens: int  # kept
    num_bytes: int  # of rows, decompressed
    total_bytes: int | None  # of the inputs; None if any of them is compressed


def silent(progress: Progress) -> None:
    """Report no progress."""


def build_store(
    folder: Path, made_from: StoreInputs, on_progress: Callable[[Progress], None]
) -> StoreManifest:
    """Write both splits and the ledger into `folder`; DataError if no row is left to train on.

    Rows of the training files that are in the validation files too are dropped.
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
    """The writers of both splits, the ledger, and the counts so far."""

    made_from: StoreInputs
    on_progress: Callable[[Progress], None]
    writers: dict[str, TokenStoreWriter]
    ledger: Ledger
    sources: list[SourceEntry]
    total_bytes: int | None
    rows_read: int = 0
    rows_duplicated: int = 0
    rows_checked: int = 0
    bytes_read: int = 0
    audit: Audit = field(default_factory=Audit)

    @classmethod
    @contextmanager
    def opened(
        cls, folder: Path, made_from: StoreInputs, on_progress: Callable[[Progress], None]
    ) -> Iterator["StoreBuilder"]:
        """A builder that writes into `folder`, until the `with` block ends."""
        with (folder / "ledger.jsonl").open("wb") as file:
            yield cls(
                made_from=made_from,
                on_progress=on_progress,
                writers={split: TokenStoreWriter(folder / split) for split in SPLITS},
                ledger=Ledger(file, made_from.options.strict),
                sources=[SourceEntry(s.name, s.sha256, 0, {}) for s in made_from.sources],
                total_bytes=_total_bytes(made_from.sources),
            )

    def add(self, files: Sequence[InputFile], held_out: SeenDigests) -> SeenDigests:
        """Add all rows of the files except those in `held_out`; return the digests of the rows."""
        seen = SeenDigests()
        options = self.made_from.options
        preparation = RowPreparation.of(self.made_from.tokenizer, self.made_from.data, held_out)
        work = partial(prepare_rows, preparation=preparation)
        batches = raw_batches(files, options.batch_bytes)
        for batch in in_order(work, batches, options.num_workers or usable_cores()):
            for split, examples in batch.examples.items():
                self.writers[split].extend(examples)
            for note in batch.notes:
                self.ledger.write(note)
            source = self.sources[batch.source]
            self.sources[batch.source] = source.with_more(batch.num_rows, batch.shapes)
            self.rows_duplicated += seen.add(batch.digests)
            self.rows_read += batch.num_rows
            self.rows_checked += batch.rows_checked
            self.bytes_read += batch.num_bytes
            self.audit += batch.audit
            self.on_progress(self._progress())
        return seen

    def _progress(self) -> Progress:
        num_tokens = sum(writer.num_tokens for writer in self.writers.values())
        return Progress(self.rows_read, num_tokens, self.bytes_read, self.total_bytes)

    def finish(self) -> StoreManifest:
        """Close the splits; DataError if there is nothing to train on."""
        splits = {split: writer.close() for split, writer in self.writers.items()}
        train, validation = splits["train"], splits["validation"]
        if not train.num_examples:
            raise self._nothing_left()
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
            length_quantiles=self.writers["train"].length_quantiles(),
            splits=splits,
            audit=self.audit,
            files={},  # hashed when they are all written
        )

    def _nothing_left(self) -> DataError:
        if not self.rows_read:
            files = ", ".join(source.file for source in self.sources)
            return DataError(
                f"{files}: no rows in this file",
                "a row is a JSON object: one per line, or all of them in one array",
            )
        dropped = self.ledger.rows_dropped
        reasons = "".join(f"; {reason}: {rows}" for reason, rows in dropped.items())
        what = f"no row is left to train on out of {self.rows_read} read{reasons}"
        first = self.ledger.first_dropped
        if first is None:
            return DataError(what, "lower --val-fraction")
        return DataError(what, f"the first: {first.message}")


def _total_bytes(sources: Sequence[Source]) -> int | None:
    """Size of the files if all of them hold rows as plain text."""
    if all(source.path.suffix in (".jsonl", ".json") for source in sources):
        return sum(source.path.stat().st_size for source in sources)
    return None
