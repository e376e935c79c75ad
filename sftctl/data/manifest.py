"""manifest.json of a token store: how the store was made, and what is in it."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sftctl import jsonio
from sftctl.disk import FileEntry
from sftctl.environment import cache_folder
from sftctl.errors import DataError
from sftctl.words import counted

FORMAT_VERSION = 2
SPLITS = ("train", "validation")

PREPARE_AGAIN = "prepare the data again"
PUT_BACK = "restore the files or prepare the data again; `sftctl resume` then continues"
"""The hint for a store that changed while a run was reading it."""


_FAILURES = {
    "examples_without_target": ("example has", "examples have", "no target token"),
    "examples_with_two_bos": (
        "example begins", "examples begin", "with two beginning-of-sequence tokens"
    ),
    "turns_without_end": (
        "trained turn ends", "trained turns end",
        "without an end-of-turn token, so the model does not learn to stop",
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Audit:
    """Counts over examples and their trained turns. Two audits can be added."""

    num_examples: int = 0
    examples_without_target: int = 0
    examples_with_two_bos: int = 0
    turns: int = 0  # maximal runs of target tokens
    turns_cut: int = 0  # turns truncated at the maximum length
    turns_without_end: int = 0  # not truncated, but their end-of-turn token is not trained
    # The following rows are kept.
    rows_with_special_text: int = 0  # a message contains the text of a special token
    rows_with_empty_answer: int = 0  # a trained turn is empty except for its end-of-turn token
    rows_with_open_thought: int = 0  # a trained turn opens a thinking block and does not close it
    rows_with_empty_question: int = 0  # a user message is empty
    rows_with_placeholder: int = 0  # a user message has a placeholder for an image
    rows_with_unlisted_call: int = 0  # a message calls a tool that the row does not list
    rows_with_unknown_token: int = 0  # a trained token stands for characters that it does not show
    targets_weighted: int = 0  # target tokens whose weight is not 1
    passed: bool = True

    @classmethod
    def of(cls, **counts: int) -> "Audit":
        """An audit with these counts. It passes if all counts named in `_FAILURES` are zero."""
        return cls(**counts, passed=not any(counts[name] for name in _FAILURES))

    def __add__(self, other: "Audit") -> "Audit":
        names = [field.name for field in fields(self) if field.name != "passed"]
        return Audit.of(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def problems(self) -> list[str]:
        """One text for each failure."""
        return [
            f"{counted(count, one, many)} {what}"
            for name, (one, many, what) in _FAILURES.items()
            if (count := getattr(self, name))
        ]


@dataclass(frozen=True, slots=True)
class SourceEntry:
    """An input file, as it was when the store was made."""

    file: str
    sha256: str
    rows: int
    shapes: dict[str, int]  # number of rows by shape, without rows that can't be read
    rows_dropped: dict[str, int] = field(default_factory=dict)  # by reason
    columns_used: list[str] = field(default_factory=list)
    columns_left: list[str] = field(default_factory=list)  # not read in one row or more
    name: str = ""  # NAME, if the file was given as `prepare-data NAME=PATH`
    num_examples: int = 0  # its examples in the train split; 0 if no file has a name

    @property
    def rows_kept(self) -> int:
        """Number of rows that became examples. Truncated rows are counted too."""
        return self.rows - sum(self.rows_dropped.values())

    def with_more(
        self,
        rows: int,
        shapes: Mapping[str, int],
        dropped: Mapping[str, int] = MappingProxyType({}),
        used: Iterable[str] = (),
        left: Iterable[str] = (),
        num_examples: int = 0,
    ) -> "SourceEntry":
        """A copy of the entry with more rows added.

        `shapes` and `dropped` count the rows by shape and by reason. `used` are the columns that
        were read, `left` are the columns with a value that were not read, in one row or more.
        """
        return replace(
            self,
            rows=self.rows + rows,
            shapes=dict(Counter(self.shapes) + Counter(shapes)),
            rows_dropped=dict(Counter(self.rows_dropped) + Counter(dropped)),
            columns_used=sorted({*self.columns_used, *used}),
            columns_left=sorted({*self.columns_left, *left}),
            num_examples=self.num_examples + num_examples,
        )


@dataclass(frozen=True, slots=True)
class SplitCounts:
    """The sizes of one split."""

    num_examples: int
    num_tokens: int
    num_target_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreManifest:
    """manifest.json: how a store was made, and what is in it.

    `rows_*` count the rows of all inputs. `num_examples`, `num_tokens`, `num_target_tokens` and
    `length_quantiles` describe only the train split. `splits` describes both splits.
    """

    format_version: int
    fingerprint: str
    tokenizer: str
    tokenizer_hash: str
    vocab_size: int
    template_hash: str
    engine: str
    engine_reason: str
    engine_rows_checked: int  # rows of this data on which engine and reference agreed
    max_seq_len: int
    overflow: str
    train_on: str
    format: str
    val_fraction: float
    sources: list[SourceEntry]
    rows_read: int
    rows_kept: int
    rows_dropped: dict[str, int]
    rows_truncated: int
    rows_split: int
    rows_duplicated: int  # kept, but an earlier row in the same split is equal
    tokens_lost: dict[str, int]  # by reason
    num_examples: int
    num_validation_examples: int
    num_tokens: int
    num_target_tokens: int
    length_quantiles: dict[str, int]
    splits: dict[str, SplitCounts]
    audit: Audit
    files: dict[str, FileEntry]
    template_options: dict[str, Any] = field(default_factory=dict)
    leading_assistant: str = "keep"
    columns: str | None = None  # data.columns
    special_text: str = "keep"
    special_text_first: list[str] = field(default_factory=list)  # the first rows with special text
    date: str | None = None  # the date in the texts, if the template writes today's date
    rows_unpadded: int = 0  # rows from which padding nulls were removed
    left_out: list[str] = field(default_factory=list)  # ignored files of a folder, with reasons
    layout_differs: str = ""  # the row for which `masks/shortcut` was wrong; empty: none
    first_rows: dict[str, str] = field(default_factory=dict)
    """Reason in the ledger, or name of a count in the audit -> place of the first such row."""
    reasoning_weight: float = 1.0
    block_sha256: dict[str, list[str]] = field(default_factory=dict)
    """File -> one hash for each block of 16 MiB."""

    @property
    def has_notes(self) -> bool:
        """Whether a row was dropped or truncated, or the audit failed."""
        return bool(self.rows_dropped or self.tokens_lost or not self.audit.passed)

    def examples_by_source(self) -> dict[str, int]:
        """Name of a source -> its number of examples in the train split. Empty without names."""
        counts: Counter[str] = Counter()
        for source in self.sources:
            if source.name:
                counts[source.name] += source.num_examples
        return dict(counts)

    @classmethod
    def read(cls, store: Path) -> "StoreManifest":
        """Read the manifest of a store. Raises DataError if it is missing or damaged."""
        path = store / "manifest.json"
        if not path.is_file():
            raise DataError(f"{store}: not a token store", "make one with `sftctl prepare-data`")
        values = jsonio.read_object(path, DataError, PREPARE_AGAIN)
        version = values.get("format_version")
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise DataError(
                f"{path}: format version {version} is newer than this sftctl's {FORMAT_VERSION}",
                "upgrade sftctl, or prepare the data again",
            )
        if version != FORMAT_VERSION:
            raise DataError(
                f"{path}: format version {version} is no longer supported", PREPARE_AGAIN
            )
        try:
            values["sources"] = [SourceEntry(**entry) for entry in values["sources"]]
            values["splits"] = {name: SplitCounts(**values["splits"][name]) for name in SPLITS}
            values["audit"] = Audit(**values["audit"])
            values["files"] = {k: FileEntry(**v) for k, v in values["files"].items()}
            return cls(**values)
        except (TypeError, KeyError, AttributeError) as problem:
            raise DataError(f"{path}: damaged manifest: {problem}", PREPARE_AGAIN) from problem


def joined_fingerprint(fingerprints: Sequence[str]) -> str:
    """One fingerprint for several stores; their order matters. A single store keeps its own."""
    if len(fingerprints) == 1:
        return fingerprints[0]
    return hashlib.sha256("\n".join(fingerprints).encode()).hexdigest()


def is_prepared(path: str | None) -> bool:
    """Whether `path` is a store. False for files with conversations and for None, the sample."""
    return path is not None and (Path(path) / "manifest.json").is_file()


def cached_store(fingerprint: str) -> Path:
    """The folder in the cache for a store that `train` prepares."""
    return cache_folder() / "stores" / fingerprint[:32]
