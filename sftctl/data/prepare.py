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
from sftctl.data.ledger import Ledger
from sftctl.data.manifest import FORMAT_VERSION, SPLITS, SourceEntry, StoreManifest
from sftctl.data.masks import MASK_RULES_VERSION
from sftctl.data.settings import PrepareSettings
from sftctl.data.sources import hash_source
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
    train, validation = _hashes(inputs), _hashes(validation_inputs)
    fingerprint = _fingerprint(train, validation, tokenizer, settings)
    with _disk_errors(output), new_folder(output) as folder:
        with (folder / "ledger.jsonl").open("wb") as ledger:
            job = _Preparation(
                {split: TokenStoreWriter(folder / split) for split in SPLITS},
                Ledger(ledger, settings.strict),
                tokenizer,
                settings,
                on_progress or _silent,
            )
            sides = [(item, settings.val_fraction) for item in train]
            sides += [(item, 1.0) for item in validation]
            job.add([Input(*item, share) for item, share in sides], num_workers)
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
    return _fingerprint(_hashes(inputs), _hashes(validation_inputs), tokenizer, settings)


@dataclass(slots=True)
class _Preparation:
    """A store in the making: the writers of both splits, the ledger, and the counts."""

    writers: dict[str, TokenStoreWriter]
    ledger: Ledger
    tokenizer: ChatTokenizer
    settings: PrepareSettings
    on_progress: Progress
    sources: list[SourceEntry] = field(default_factory=list)
    rows_read: int = 0

    def add(self, inputs: Sequence[Input], num_workers: int) -> None:
        """All rows of the inputs, in order."""
        self.sources += [SourceEntry(str(item.path), item.sha256, 0) for item in inputs]
        work = BatchPreparation(self.tokenizer, self.settings)
        for batch in in_order(work, raw_batches(inputs), num_workers):
            for split, examples in batch.examples.items():
                self.writers[split].extend(examples)
            for note in batch.notes:
                self.ledger.write(note)
            source = self.sources[batch.source]
            self.sources[batch.source] = replace(source, rows=source.rows + batch.num_rows)
            self.rows_read += batch.num_rows
            num_tokens = sum(writer.num_tokens for writer in self.writers.values())
            self.on_progress(self.rows_read, num_tokens)

    def finish(self, fingerprint: str) -> StoreManifest:
        """Close the splits; DataError if there is nothing to train on."""
        splits = {split: writer.close() for split, writer in self.writers.items()}
        train, validation = splits["train"], splits["validation"]
        if not train.num_examples:
            what = f"no row is left to train on, of {self.rows_read} read"
            raise DataError(what, "raise --max-seq-len, or lower --val-fraction")
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
            num_examples=train.num_examples,
            num_validation_examples=validation.num_examples,
            num_tokens=train.num_tokens,
            num_target_tokens=train.num_target_tokens,
            length_quantiles=self.writers["train"].length_quantiles(),
            splits=splits,
        )


def _silent(num_rows: int, num_tokens: int) -> None:
    """Progress that nobody watches."""


def _hashes(paths: Sequence[Path]) -> list[tuple[Path, str]]:
    return [(path, hash_source(path)) for path in paths]


def _fingerprint(
    train: list[tuple[Path, str]],
    validation: list[tuple[Path, str]],
    tokenizer: ChatTokenizer,
    settings: PrepareSettings,
) -> str:
    ingredients = {
        "format_version": FORMAT_VERSION,
        "mask_rules_version": MASK_RULES_VERSION,
        "train": [sha256 for _, sha256 in train],
        "validation": [sha256 for _, sha256 in validation],
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
