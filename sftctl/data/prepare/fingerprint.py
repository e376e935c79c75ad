"""Everything that a store is made from, and its hash: the fingerprint of the store.

Stores with equal fingerprints have equal examples.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

from sftctl import jsonio
from sftctl.config.schema import DataConfig, Format, Overflow, TrainOn
from sftctl.data.conversations.column_map import parse_columns
from sftctl.data.conversations.columns import Columns
from sftctl.data.manifest import FORMAT_VERSION
from sftctl.data.masks.encode import MASK_RULES_VERSION
from sftctl.data.reading.folders import Wanted
from sftctl.data.reading.sources import Source, find_sources
from sftctl.model.tokenizer.tokenizer import ChatTokenizer, Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareOptions:
    """Options of `prepare-data` that are not in the configuration of a run."""

    engine: Engine = "auto"
    strict: bool = False  # True: a row that can't be kept unchanged is an error
    num_workers: int | None = None  # None: one per usable core
    batch_bytes: int = 1 << 20  # size of a batch of rows for a worker
    names: tuple[str, ...] = ()  # NAME of each input NAME=PATH; empty: no names


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settings:
    """Settings that decide the content of a store. The hash includes names and order of fields."""

    format: Format
    max_seq_len: int
    overflow: Overflow
    train_on: TrainOn
    val_fraction: float
    strict: bool = False  # not used; kept because the hash always included this field
    engine: Engine


@dataclass(frozen=True, slots=True)
class StoreInputs:
    """Everything that a store is made from."""

    train: Sequence[Source]
    validation: Sequence[Source]
    tokenizer: ChatTokenizer
    data: DataConfig
    options: PrepareOptions
    columns: Columns = ()
    left_out: tuple[str, ...] = ()  # ignored files of a folder, with reasons
    layout_differs: str = ""  # the row for which `masks/shortcut` was wrong; empty: none

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
        """Find and hash the input files. They can be read only inside the `with` block."""
        columns = parse_columns(data.columns)
        left_out: list[str] = []
        training = Wanted(format=data.format)
        held_out = Wanted(format=data.format, for_validation=True)
        with ExitStack() as stack:
            train = list[Source]()
            for path, name in zip_longest(inputs, options.names, fillvalue=""):
                found = stack.enter_context(find_sources([Path(path)], training, left_out))
                train += [replace(source, source=name) for source in found]
            validation = stack.enter_context(find_sources(validation_inputs, held_out, left_out))
            dated = tokenizer.with_date(data.date)
            yield cls(train, validation, dated, data, options, columns, tuple(left_out))

    @property
    def sources(self) -> list[Source]:
        """All input files."""
        return [*self.train, *self.validation]

    def fingerprint(self) -> str:
        """SHA-256 of everything that decides the content of the store. File names and the number of
        workers are not included."""
        return self._hash(MASK_RULES_VERSION, self._later_settings())

    def older_fingerprints(self) -> list[str]:
        """The fingerprints of this store in older versions, which had other mask rules."""
        older = range(1, MASK_RULES_VERSION)
        return [self._hash(version, {}) for version in older]

    def _hash(self, mask_rules_version: int, later_settings: dict[str, object]) -> str:
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
            "mask_rules_version": mask_rules_version,
            "train": [source.sha256 for source in self.train],
            "validation": [source.sha256 for source in self.validation],
            "tokenizer": self.tokenizer.content_hash,
            "template": self.tokenizer.template_hash,
            "settings": settings,
        } | later_settings
        return hashlib.sha256(jsonio.dump_canonical(content)).hexdigest()

    def _later_settings(self) -> dict[str, object]:
        """Settings that older versions did not have. Settings with default values are left out.

        Template options are left out too, because the hash of the template includes them.
        """
        date = self.tokenizer.date
        values: dict[str, object] = {
            "leading_assistant": self.data.leading_assistant,
            "columns": sorted(self.columns) or None,
            "special_text": self.data.special_text,
            "reasoning_weight": self.data.reasoning_weight,
            "date": None if date is None else date.isoformat(),
        }
        changed = {key: v for key, v in values.items() if v != getattr(DataConfig(), key)}
        if self.options.names:
            changed["names"] = [source.source for source in self.train]
        return changed


def store_fingerprint(
    inputs: Sequence[Path],
    tokenizer: ChatTokenizer,
    data: DataConfig,
    validation_inputs: Sequence[Path] = (),
    options: PrepareOptions = PrepareOptions(),
) -> str:
    """The fingerprint that `prepare_store` would write. Nothing is tokenized."""
    with StoreInputs.found(inputs, tokenizer, data, validation_inputs, options) as made_from:
        return made_from.fingerprint()
