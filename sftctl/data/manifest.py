"""manifest.json of a token store: how it was made and what it holds."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from sftctl import jsonio
from sftctl.disk import FileEntry
from sftctl.errors import DataError
from sftctl.words import counted

FORMAT_VERSION = 2
SPLITS = ("train", "validation")

PREPARE_ANEW = "prepare the data anew"


_FAILURES = {
    "examples_without_target": ("example has", "examples have", "no target token"),
    "examples_with_two_bos": (
        "example begins", "examples begin", "with two beginning-of-sequence tokens"
    ),
    "turns_without_end": (
        "trained turn ends", "trained turns end",
        "without an end-of-turn token, which teaches no stop",
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Audit:
    """Counts over examples and over their trained turns; sums of audits are audits."""

    num_examples: int = 0
    examples_without_target: int = 0
    examples_with_two_bos: int = 0
    turns: int = 0  # maximal runs of target tokens
    turns_cut: int = 0  # the maximum length ends them
    turns_without_end: int = 0  # not cut, and still no end-of-turn token is trained
    passed: bool = True

    @classmethod
    def of(cls, **counts: int) -> "Audit":
        """With the verdict: every example has a target, one beginning, every whole turn its end."""
        return cls(**counts, passed=not any(counts[name] for name in _FAILURES))

    def __add__(self, other: "Audit") -> "Audit":
        names = [field.name for field in fields(self) if field.name != "passed"]
        return Audit.of(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def problems(self) -> list[str]:
        """What is wrong, in words."""
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
    shapes: dict[str, int]  # how many rows have each; rows that can't be read have none

    def with_more(self, rows: int, shapes: Mapping[str, int]) -> "SourceEntry":
        """With more rows, and their shapes."""
        total = dict(Counter(self.shapes) + Counter(shapes))
        return SourceEntry(self.file, self.sha256, self.rows + rows, total)


@dataclass(frozen=True, slots=True)
class SplitCounts:
    """What one split holds."""

    num_examples: int
    num_tokens: int
    num_target_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreManifest:
    """manifest.json: how a store was made and what it holds.

    `rows_*` count rows of all inputs; `num_examples`, `num_tokens`, `num_target_tokens` and the
    quantiles speak of what training sees, the train split; `splits` has both.
    """

    format_version: int
    fingerprint: str
    tokenizer: str
    tokenizer_hash: str
    vocab_size: int
    template_hash: str
    engine: str
    engine_reason: str
    engine_rows_checked: int  # rows of this data on which it was seen equal to the reference
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
    rows_duplicated: int  # kept, but an earlier row of the same side says exactly the same
    tokens_lost: dict[str, int]  # by reason
    num_examples: int
    num_validation_examples: int
    num_tokens: int
    num_target_tokens: int
    length_quantiles: dict[str, int]
    splits: dict[str, SplitCounts]
    audit: Audit
    files: dict[str, FileEntry]

    @property
    def has_notes(self) -> bool:
        """True: some row was not kept as it came, or the audit failed."""
        return bool(self.rows_dropped or self.tokens_lost or not self.audit.passed)

    @classmethod
    def read(cls, store: Path) -> "StoreManifest":
        """The manifest of a store's folder; DataError where it is none."""
        path = store / "manifest.json"
        if not path.is_file():
            raise DataError(f"{store}: not a token store", "make one with `sftctl prepare-data`")
        values = jsonio.read_object(path, DataError, PREPARE_ANEW)
        version = values.get("format_version")
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise DataError(
                f"{path}: format version {version} is newer than this sftctl's {FORMAT_VERSION}",
                "upgrade sftctl, or prepare the data anew",
            )
        if version != FORMAT_VERSION:
            raise DataError(f"{path}: format version {version} is not read any more", PREPARE_ANEW)
        try:
            values["sources"] = [SourceEntry(**entry) for entry in values["sources"]]
            values["splits"] = {name: SplitCounts(**values["splits"][name]) for name in SPLITS}
            values["audit"] = Audit(**values["audit"])
            values["files"] = {k: FileEntry(**v) for k, v in values["files"].items()}
            return cls(**values)
        except (TypeError, KeyError, AttributeError) as problem:
            raise DataError(f"{path}: damaged manifest: {problem}", PREPARE_ANEW) from problem
