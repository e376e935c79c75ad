"""A store in the making: examples into the writers, notes into the ledger, and all counts."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sftctl.data.ledger import Ledger
from sftctl.data.manifest import FORMAT_VERSION, SPLITS, Audit, SourceEntry, StoreManifest
from sftctl.data.prepare.duplicates import SeenDigests
from sftctl.data.prepare.row_batches import BatchPreparation, Input, raw_batches
from sftctl.data.prepare.settings import PrepareSettings
from sftctl.data.prepare.workers import in_order
from sftctl.data.store import TokenStoreWriter
from sftctl.errors import DataError
from sftctl.model.tokenizer.tokenizer import ChatTokenizer


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a preparation is."""

    num_rows: int  # read
    num_tokens: int  # kept
    num_bytes: int  # of rows, decompressed
    total_bytes: int | None  # of the inputs; None where they are compressed


def silent(progress: Progress) -> None:
    """For progress that nobody watches."""


@dataclass(slots=True)
class StoreAssembly:
    """A store in the making: the writers of both splits, the ledger, and the counts."""

    fingerprint: str
    tokenizer: ChatTokenizer
    settings: PrepareSettings
    on_progress: Callable[[Progress], None]
    sources: list[SourceEntry]
    total_bytes: int | None
    seen: SeenDigests = field(default_factory=SeenDigests)
    rows_read: int = 0
    rows_duplicated: int = 0
    rows_checked: int = 0
    bytes_read: int = 0
    audit: Audit = field(default_factory=Audit)
    writers: dict[str, TokenStoreWriter] = field(init=False)
    ledger: Ledger = field(init=False)

    @contextmanager
    def opened(self, folder: Path) -> Iterator[None]:
        """Write into `folder` meanwhile."""
        self.writers = {split: TokenStoreWriter(folder / split) for split in SPLITS}
        with (folder / "ledger.jsonl").open("wb") as file:
            self.ledger = Ledger(file, self.settings.strict)
            yield

    def add(self, inputs: Sequence[Input], num_workers: int) -> None:
        """All rows of the inputs, in order; those that say what was added before are left out."""
        held_out, self.seen = self.seen, SeenDigests()
        work = BatchPreparation(self.tokenizer, self.settings, held_out)
        for batch in in_order(work, raw_batches(inputs), num_workers):
            for split, examples in batch.examples.items():
                self.writers[split].extend(examples)
            for note in batch.notes:
                self.ledger.write(note)
            source = self.sources[batch.source]
            self.sources[batch.source] = source.with_more(batch.num_rows, batch.shapes)
            self.rows_duplicated += self.seen.add(batch.digests)
            self.rows_read += batch.num_rows
            self.rows_checked += batch.rows_checked
            self.bytes_read += batch.num_bytes
            self.audit += batch.audit
            self.on_progress(self._progress())

    def _progress(self) -> Progress:
        num_tokens = sum(writer.num_tokens for writer in self.writers.values())
        return Progress(self.rows_read, num_tokens, self.bytes_read, self.total_bytes)

    def finish(self) -> StoreManifest:
        """Close the splits; DataError if there is nothing to train on."""
        splits = {split: writer.close() for split, writer in self.writers.items()}
        train, validation = splits["train"], splits["validation"]
        if not train.num_examples:
            raise self._nothing_left()
        dropped = self.ledger.rows_dropped
        return StoreManifest(
            format_version=FORMAT_VERSION,
            fingerprint=self.fingerprint,
            tokenizer=self.tokenizer.name,
            tokenizer_hash=self.tokenizer.content_hash,
            vocab_size=self.tokenizer.vocab_size,
            template_hash=self.tokenizer.template_hash,
            engine=self.tokenizer.engine,
            engine_reason=self.tokenizer.engine_reason,
            engine_rows_checked=self.rows_checked,
            max_seq_len=self.settings.max_seq_len,
            overflow=self.settings.overflow,
            train_on=self.settings.train_on,
            format=self.settings.format,
            val_fraction=self.settings.val_fraction,
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
                "a row is a JSON object: one a line, or all of them in one array",
            )
        dropped = self.ledger.rows_dropped
        reasons = "".join(f"; {reason}: {rows}" for reason, rows in dropped.items())
        what = f"no row is left to train on, of {self.rows_read} read{reasons}"
        first = self.ledger.first_dropped
        if first is None:
            return DataError(what, "lower --val-fraction")
        return DataError(what, f"the first: {first.message}")
