"""What a store is made from, and its fingerprint: equal fingerprints mean equal stores."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sftctl import jsonio
from sftctl.config.schema import DataConfig, Format, Overflow, TrainOn
from sftctl.data.manifest import FORMAT_VERSION
from sftctl.data.masks.encode import MASK_RULES_VERSION
from sftctl.data.reading.sources import Source, find_sources
from sftctl.model.tokenizer.tokenizer import ChatTokenizer, Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareOptions:
    """How a store is prepared, besides what the configuration of a run says."""

    engine: Engine = "auto"
    strict: bool = False  # True: a row that can't be kept unchanged is an error
    num_workers: int | None = None  # None: one per usable core
    batch_bytes: int = 1 << 20  # size of the batches of rows that workers take


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settings:
    """Settings that decide a store's content. The fields' names and order are in the hash."""

    format: Format
    max_seq_len: int
    overflow: Overflow
    train_on: TrainOn
    val_fraction: float
    strict: bool = False  # does not affect a store; kept because older hashes include it
    engine: Engine


@dataclass(frozen=True, slots=True)
class StoreInputs:
    """Everything that a store is made from."""

    train: Sequence[Source]
    validation: Sequence[Source]
    tokenizer: ChatTokenizer
    data: DataConfig
    options: PrepareOptions

    @classmethod
    @contextmanager
    def found(
        cls,
        inputs: Sequence[Path],
        tokenizer: ChatTokenizer,
        data: DataConfig,
        validation_inputs: Sequence[Path],
        options: PrepareOptions,
    ) -> Iterator["StoreInputs"]:
        """Find and hash the input files; they can be read inside the `with` block."""
        with find_sources(inputs) as train, find_sources(validation_inputs) as validation:
            yield cls(train, validation, tokenizer, data, options)

    @property
    def sources(self) -> list[Source]:
        """All input files."""
        return [*self.train, *self.validation]

    def fingerprint(self) -> str:
        """SHA-256 of all that decides the store's content, file names and workers left out."""
        settings = _Settings(
            format=self.data.format,
            max_seq_len=self.data.example_tokens,
            overflow=self.data.overflow,
            train_on=self.data.train_on,
            val_fraction=self.data.val_fraction,
            engine=self.options.engine,
        )
        content = {
            "format_version": FORMAT_VERSION,
            "mask_rules_version": MASK_RULES_VERSION,
            "train": [source.sha256 for source in self.train],
            "validation": [source.sha256 for source in self.validation],
            "tokenizer": self.tokenizer.content_hash,
            "template": self.tokenizer.template_hash,
            "settings": settings,
        }
        return hashlib.sha256(jsonio.dump_canonical(content)).hexdigest()


def store_fingerprint(
    inputs: Sequence[Path],
    tokenizer: ChatTokenizer,
    data: DataConfig,
    validation_inputs: Sequence[Path] = (),
    options: PrepareOptions = PrepareOptions(),
) -> str:
    """The fingerprint that `prepare_store` would write, without tokenizing: the key of a cache."""
    with StoreInputs.found(inputs, tokenizer, data, validation_inputs, options) as made_from:
        return made_from.fingerprint()
