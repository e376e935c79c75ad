"""Find the data files in a folder, and choose those of the training or validation split."""

import glob
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from sftctl.config.schema import Format
from sftctl.data.reading.compressed import COMPRESSED
from sftctl.data.reading.documents import DOCUMENTS
from sftctl.data.reading.tables import TABLES
from sftctl.errors import DataError

_ENDINGS = (
    *(".jsonl", ".json", ".ndjson", ".jsonlines", ".jl", ".parquet", ".pq", ".arrow", ".feather"),
    *TABLES,
)
_TRAIN = frozenset({"train", "training"})
_HELD_OUT = frozenset(
    {
        *("valid", "validation", "val", "dev", "test", "testing", "eval", "evaluation", "evals"),
        *("validate", "holdout", "heldout", "testset", "devset", "valset", "evalset"),
    }
)
PACKED = (
    *(".zip", ".tar", ".tgz", ".tbz2", ".txz", ".xz", ".bz2", ".lz4", ".lzma", ".7z", ".rar"),
    *(".tar.gz", ".tar.zst", ".xlsx", ".xls"),
)
"""Extensions of archives and workbooks. They are not read, although they may hold rows."""
_METADATA = frozenset(
    {
        *("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"),
        *("metadata.json", "croissant.json", "package.json", "manifest.json"),
        *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
        *("special_tokens_map.json", "added_tokens.json", "vocab.json", "adapter_config.json"),
        *("preprocessor_config.json", "model.safetensors.index.json", "trainer_state.json"),
    }
)
_IS_PACKED = "an archive or workbook: unpack it, or save it as CSV"
_CACHE = re.compile(r"(cache-|tmp).*\.arrow$")  # cache files of the library `datasets`
_WORDS = re.compile(r"[a-z]+")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which files of a folder to read."""

    for_validation: bool = False
    format: Format = "auto"


TRAINING = Wanted()


def is_store(folder: Path) -> bool:
    """Whether the folder is a token store, as `prepare-data` writes stores."""
    return (folder / "manifest.json").is_file() and (folder / "ledger.jsonl").is_file()


def files_below(folder: Path, wanted: Wanted, left_out: list[str]) -> list[Path]:
    """The data files in a folder and its subfolders.

    These are left out: hidden files, token stores, metadata, and files whose names show another
    split. Metadata and files of another split are added to `left_out`. Raises DataError if no file
    is left.
    """
    if is_store(folder):
        raise DataError(
            f"{folder}: is a token store", "name the conversations that it was made from"
        )
    found: list[Path] = []
    for parent, folders, files in os.walk(folder):
        inner = (Path(parent) / name for name in folders if not name.startswith("."))
        folders[:] = sorted(path.name for path in inner if not is_store(path))
        found += _data_files(Path(parent), sorted(files), wanted, left_out)
    if not found:
        raise DataError(f"{folder}: no data files in this folder", _what_is_there(left_out))
    meant = _of_the_split(found, folder, wanted, left_out)
    if not meant:
        names = ", ".join(str(path.relative_to(folder)) for path in found[:3])
        raise DataError(
            f"{folder}: by their names, all files are validation or test data: {names}",
            "to train on them, name the files themselves",
        )
    return meant


def _what_is_there(left_out: Sequence[str]) -> str:
    """A hint for a folder without data files."""
    if packed := [text for text in left_out if text.endswith(f"({_IS_PACKED})")]:
        return f"{packed[0]}, then run the command again"
    texts = [text for text in left_out if text.partition(" (")[0].endswith(DOCUMENTS[:2])]
    more = ", and .txt with --format text" if texts else ""
    return f"known endings: {', '.join(_ENDINGS)}{more}"


def matching(
    files: Sequence[Path], pattern: Path, wanted: Wanted, left_out: list[str]
) -> list[Path]:
    """The files that match a pattern, without metadata.

    Files of another split are left out, except if the pattern names that split.
    """
    data = [file for file in files if file.name not in _METADATA]
    left_out += [f"{file} (metadata)" for file in files if file.name in _METADATA]
    if _HELD_OUT.intersection(_words(pattern.name)):
        return data
    fixed = takewhile(lambda part: not glob.has_magic(part), pattern.parts)
    return _of_the_split(data, Path(*fixed), wanted, left_out) or data


def _data_files(
    folder: Path, names: list[str], wanted: Wanted, left_out: list[str]
) -> Iterator[Path]:
    """The data files directly in one folder, in order."""
    saved = _saved_by_datasets(folder) if "state.json" in names else None
    for name in names if saved is None else saved:
        path = folder / name
        if name.startswith("."):
            continue
        if name.lower().endswith(PACKED):
            left_out.append(f"{path} ({_IS_PACKED})")
        elif not _is_data(name, wanted.format):
            left_out.append(f"{path} (not a data file by its name)")
        elif name in _METADATA or (saved is None and _CACHE.match(name)):
            left_out.append(f"{path} (metadata)")
        else:
            yield path


def _saved_by_datasets(folder: Path) -> list[str] | None:
    """The files of a folder that `datasets.save_to_disk` wrote, in the order of the rows.

    None for other folders. Raises DataError if a file is missing, or if rows are selected by an
    index.
    """
    state_file = folder / "state.json"
    try:
        state = json.loads(state_file.read_bytes())
        names = [str(entry["filename"]) for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if state.get("_indices_data_files"):
        raise DataError(
            f"{folder}: saved with an index, which selects some of its rows",
            "load it with datasets, call flatten_indices(), and save it again",
        )
    for name in names:
        if not (folder / name).is_file():
            raise DataError(f"{folder / name}: missing, but {state_file} names it", "copy it again")
    return names


def _of_the_split(
    files: Iterable[Path], folder: Path, wanted: Wanted, left_out: list[str]
) -> list[Path]:
    """The files of the wanted split, judged by their names. Other files go to `left_out`."""
    files = list(files)
    splits = {path: _split_of(path.relative_to(folder)) for path in files}
    other = "train" if wanted.for_validation else "held out"
    meant = [path for path in files if splits[path] != other]
    if wanted.for_validation and not meant:
        return files
    what = "training" if wanted.for_validation else "validation or test"
    left_out += [f"{path} ({what} data by its name)" for path in files if path not in set(meant)]
    return meant


def _split_of(path: Path) -> str | None:
    """`train` or `held out`, by words in the name of the file or of the folders above it."""
    for part in (path.name, *reversed(path.parent.parts)):
        words = _words(part)
        if words & _TRAIN:
            return "train"
        if words & _HELD_OUT:
            return "held out"
    return None


def _words(name: str) -> set[str]:
    """The words in a file's name, and each two neighbours as one word (held_out is heldout)."""
    words = _WORDS.findall(name.lower())
    return {*words, *(first + second for first, second in zip(words, words[1:], strict=False))}


def _is_data(name: str, format: Format) -> bool:
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return name.lower().endswith(_ENDINGS + (DOCUMENTS[:2] if format == "text" else ()))
