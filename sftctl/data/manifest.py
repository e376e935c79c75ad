"""A token store's manifest.json: how the store was made and what it holds."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from sftctl import jsonio
from sftctl.config.schema import DataConfig
from sftctl.disk import FileEntry
from sftctl.environment import cache_folder
from sftctl.errors import ConfigError, DataError
from sftctl.words import counted

FORMAT_VERSION = 2
SPLITS = ("train", "validation")

PREPARE_AGAIN = "prepare the data again"


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
    """Counts over examples and their trained turns. The sum of two audits is an audit."""

    num_examples: int = 0
    examples_without_target: int = 0
    examples_with_two_bos: int = 0
    turns: int = 0  # maximal runs of target tokens
    turns_cut: int = 0  # ended by the maximum length
    turns_without_end: int = 0  # not truncated, but their end-of-turn token is not trained
    passed: bool = True

    @classmethod
    def of(cls, **counts: int) -> "Audit":
        """An audit passes if none of its counts in `_FAILURES` is above zero."""
        return cls(**counts, passed=not any(counts[name] for name in _FAILURES))

    def __add__(self, other: "Audit") -> "Audit":
        names = [field.name for field in fields(self) if field.name != "passed"]
        return Audit.of(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def problems(self) -> list[str]:
        """What is wrong, as text."""
        return [
            f"{counted(count, one, many)} {what}"
            for name, (one, many, what) in _FAILURES.items()
            if (count := getattr(self, name))
        ]


@dataclass(frozen=True, slots=True)
class SourceEntry:
    """An input file when the store was made."""

    file: str
    sha256: str
    rows: int
    shapes: dict[str, int]  # number of rows by shape, without rows that can't be read

    def with_more(self, rows: int, shapes: Mapping[str, int]) -> "SourceEntry":
        """The entry after more rows with these shapes."""
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
    quantiles describe the train split only; `splits` has both splits.
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

    @property
    def has_notes(self) -> bool:
        """True: some row was dropped or shortened, or the audit failed."""
        return bool(self.rows_dropped or self.tokens_lost or not self.audit.passed)

    @classmethod
    def read(cls, store: Path) -> "StoreManifest":
        """Read the manifest in a store's folder; DataError if there is none or it is damaged."""
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


def is_prepared(path: str | None) -> bool:
    """Whether `data.path` is a store; else it is conversations, or the bundled sample (None)."""
    return path is not None and (Path(path) / "manifest.json").is_file()


def cached_store(fingerprint: str) -> Path:
    """Where training keeps a store that it prepared itself."""
    return cache_folder() / "stores" / fingerprint[:32]


def require_settings(store: Path, manifest: StoreManifest, data: DataConfig) -> None:
    """Refuse a store that was prepared with other settings. A default accepts any setting."""
    for key in ("train_on", "overflow", "format", "val_fraction"):
        wanted, stored = getattr(data, key), getattr(manifest, key)
        if wanted not in (stored, getattr(DataConfig(), key)):
            raise DataError(
                f"{store}: prepared with {key} {stored}, the run asks for {wanted}",
                f"prepare the data again, or leave data.{key} out",
            )
    if (
        data.chat_template is not None
        and _template_hash(data.chat_template) != manifest.template_hash
    ):
        raise DataError(
            f"{store}: prepared with another chat template than {data.chat_template}",
            "prepare the data again, or leave data.chat_template out",
        )
    longest = manifest.length_quantiles["max"]
    if data.max_seq_len is not None and longest > data.max_seq_len:
        raise ConfigError(
            f"data.max_seq_len: {data.max_seq_len}, but {store} holds an example of "
            f"{counted(longest, 'token')}",
            hint="prepare the data again with --max-seq-len, or leave it out here",
        )


def _template_hash(file: str) -> str:
    from sftctl.model.tokenizer.tokenizer import read_template  # loads much; rarely needed

    return hashlib.sha256(read_template(Path(file)).encode()).hexdigest()
