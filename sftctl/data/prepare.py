"""From files of conversations to a token store that is whole or absent, every row accounted for."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from sftctl import jsonio
from sftctl.data.batch import BatchPreparation, Input, raw_batches
from sftctl.data.chat import ChatTokenizer
from sftctl.data.duplicates import SeenDigests
from sftctl.data.ledger import Ledger
from sftctl.data.manifest import FORMAT_VERSION, SPLITS, SourceEntry, StoreManifest
from sftctl.data.masks import MASK_RULES_VERSION
from sftctl.data.settings import PrepareSettings
from sftctl.data.sources import Source, found_sources
from sftctl.data.store import TokenStoreWriter
from sftctl.data.workers import in_order
from sftctl.disk import new_folder
from sftctl.errors import ConfigError, DataError

Progress = Callable[[int, int], None]
"""Told (rows read, tokens kept) so far."""


def prepare_store(
    inputs: Sequence[Path],
    output: Path,
    tokenizer: ChatTokenizer,
    settings: PrepareSettings,
    validation_inputs: Sequence[Path] = (),
    on_progress: Progress | None = None,
    num_workers: int = 1,
) -> StoreManifest:
    """Write the store at `output`, which must not exist; nothing is left there if it fails."""
    if os.path.lexists(output):
        raise ConfigError(f"{output}: exists already", "name another output, or remove it first")
    if settings.val_fraction and validation_inputs:
        raise ConfigError("a validation fraction and validation inputs exclude each other")
    with found_sources(inputs) as train, found_sources(validation_inputs) as validation:
        fingerprint = _fingerprint(train, validation, tokenizer, settings)
        with _disk_errors(output), new_folder(output) as folder:
            with (folder / "ledger.jsonl").open("wb") as ledger:
                job = _Preparation(
                    {split: TokenStoreWriter(folder / split) for split in SPLITS},
                    Ledger(ledger, settings.strict),
                    tokenizer,
                    settings,
                    on_progress or _silent,
                    [SourceEntry(item.name, item.sha256, 0, {}) for item in train + validation],
                )
                numbers = range(len(train), len(job.sources))
                held_out = [Input(*item, 1.0) for item in zip(numbers, validation, strict=True)]
                job.add(held_out, num_workers)
                rest = [Input(*item, settings.val_fraction) for item in enumerate(train)]
                job.add(rest, num_workers)
            manifest = job.finish(fingerprint)
            tokenizer.save(folder / "tokenizer")
            (folder / "manifest.json").write_bytes(jsonio.dump_pretty(manifest))
    return manifest


def store_fingerprint(
    inputs: Sequence[Path],
    tokenizer: ChatTokenizer,
    settings: PrepareSettings,
    validation_inputs: Sequence[Path] = (),
) -> str:
    """The fingerprint `prepare_store` would write, without tokenizing: a key for a cache."""
    with found_sources(inputs) as train, found_sources(validation_inputs) as validation:
        return _fingerprint(train, validation, tokenizer, settings)


@dataclass(slots=True)
class _Preparation:
    """A store in the making: the writers of both splits, the ledger, and the counts."""

    writers: dict[str, TokenStoreWriter]
    ledger: Ledger
    tokenizer: ChatTokenizer
    settings: PrepareSettings
    on_progress: Progress
    sources: list[SourceEntry]
    seen: SeenDigests = field(default_factory=SeenDigests)
    rows_read: int = 0
    rows_duplicated: int = 0

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
            num_tokens = sum(writer.num_tokens for writer in self.writers.values())
            self.on_progress(self.rows_read, num_tokens)

    def finish(self, fingerprint: str) -> StoreManifest:
        """Close the splits; DataError if there is nothing to train on."""
        splits = {split: writer.close() for split, writer in self.writers.items()}
        train, validation = splits["train"], splits["validation"]
        if not train.num_examples:
            raise self._nothing_left()
        dropped = self.ledger.rows_dropped
        return StoreManifest(
            format_version=FORMAT_VERSION,
            fingerprint=fingerprint,
            tokenizer=self.tokenizer.name,
            tokenizer_hash=self.tokenizer.content_hash,
            template_hash=self.tokenizer.template_hash,
            engine=self.settings.engine,
            max_seq_len=self.settings.max_seq_len,
            overflow=self.settings.overflow,
            train_on=self.settings.train_on,
            sources=self.sources,
            rows_read=self.rows_read,
            rows_kept=self.rows_read - sum(dropped.values()),
            rows_dropped=dropped,
            rows_truncated=self.ledger.rows_truncated,
            rows_duplicated=self.rows_duplicated,
            tokens_lost=self.ledger.tokens_lost,
            num_examples=train.num_examples,
            num_validation_examples=validation.num_examples,
            num_tokens=train.num_tokens,
            num_target_tokens=train.num_target_tokens,
            length_quantiles=self.writers["train"].length_quantiles(),
            splits=splits,
        )

    def _nothing_left(self) -> DataError:
        if not self.rows_read:
            files = ", ".join(source.file for source in self.sources)
            return DataError(f"{files}: no rows in this file")
        dropped = self.ledger.rows_dropped
        reasons = "".join(f"; {reason}: {rows}" for reason, rows in dropped.items())
        what = f"no row is left to train on, of {self.rows_read} read{reasons}"
        first = self.ledger.first_dropped
        if first is None:
            return DataError(what, "lower --val-fraction")
        return DataError(what, f"the first: {first.message}")


def _silent(num_rows: int, num_tokens: int) -> None:
    """Progress that nobody watches."""


def _fingerprint(
    train: Sequence[Source],
    validation: Sequence[Source],
    tokenizer: ChatTokenizer,
    settings: PrepareSettings,
) -> str:
    ingredients = {
        "format_version": FORMAT_VERSION,
        "mask_rules_version": MASK_RULES_VERSION,
        "train": [source.sha256 for source in train],
        "validation": [source.sha256 for source in validation],
        "tokenizer": tokenizer.content_hash,
        "template": tokenizer.template_hash,
        "settings": replace(settings, strict=False),  # strictness changes no store that is made
    }
    return hashlib.sha256(jsonio.dump_canonical(ingredients)).hexdigest()


@contextmanager
def _disk_errors(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        reason = (problem.strerror or str(problem)).lower()
        raise DataError(f"{output}: can't be written: {reason}") from problem
