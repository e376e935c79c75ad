"""What was named as input, found: files, folders, patterns, standard input, each with its hash."""

import glob
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import BinaryIO

from sftctl.disk import hash_file
from sftctl.errors import DataError

STANDARD_INPUT = "-"
_ENDINGS = (".jsonl", ".json", ".parquet")
_COMPRESSED = (".gz", ".zst")


@dataclass(frozen=True, slots=True)
class Source:
    """An input file."""

    path: Path  # where its bytes lie
    name: str  # what messages and the ledger call it
    sha256: str


@contextmanager
def found_sources(inputs: Sequence[Path]) -> Iterator[list[Source]]:
    """The files that the inputs mean, in order; what can be read once only is copied to disk first.

    A folder means every data file below it, by name; a pattern those that match.
    """
    with ExitStack() as stack:
        sources = []
        for path in (found for item in inputs for found in _files(item)):
            name = str(path)
            try:
                if name == STANDARD_INPUT:
                    path = stack.enter_context(_copied(sys.stdin.buffer))
                elif path.is_fifo() or path.is_char_device():
                    with path.open("rb") as pipe:
                        path = stack.enter_context(_copied(pipe))
                sources.append(Source(path, name, hash_file(path).sha256))
            except OSError as problem:
                raise unreadable(name, problem) from problem
        yield sources


def require_input(path: Path) -> None:
    """DataError where `path` names nothing; nothing is read."""
    if str(path) == STANDARD_INPUT:
        raise DataError(
            "--data -: train does not read standard input, which can't be read a second time",
            "`sftctl prepare-data - --output STORE` first, then --data STORE",
        )
    if not path.exists() and not glob.has_magic(str(path)):
        raise DataError(f"{path}: no such file or directory", _nearby(path))
    if not path.exists():
        _files(path)


def _nearby(path: Path) -> str:
    """What may have been meant by a path that is not there."""
    there = os.listdir(path.parent) if path.parent.is_dir() else []
    near = get_close_matches(path.name, there, n=1)
    if near:
        return f"did you mean {path.parent / near[0]}?"
    return "name a file, folder or pattern of conversations; train also takes a prepared store"


def unreadable(name: str, problem: OSError) -> DataError:
    """An input that can't be read, in the system's words."""
    reason = (problem.strerror or str(problem)).lower()
    if isinstance(problem, FileNotFoundError):
        return DataError(f"{name}: {reason}", _nearby(Path(name)))
    return DataError(f"{name}: {reason}", "is the file whole, and may you read it?")


def _files(path: Path) -> list[Path]:
    if str(path) == STANDARD_INPUT:
        return [path]
    if path.is_dir():
        return _below(path)
    if not path.exists() and glob.has_magic(str(path)):
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        if not matches:
            raise DataError(
                f"{path}: no file matches this pattern",
                "* stands for a part of one name, ** for folders below each other",
            )
        return [file for match in matches for file in _files(match)]
    return [path]


def _below(folder: Path) -> list[Path]:
    """The data files in a folder and its folders, hidden ones and token stores left out."""
    if is_store(folder):
        raise DataError(f"{folder}: is a token store", "name the conversations it was made from")
    found = []
    for parent, folders, files in os.walk(folder):
        inner = (Path(parent) / name for name in folders if not name.startswith("."))
        folders[:] = sorted(path.name for path in inner if not is_store(path))
        found += [Path(parent) / name for name in sorted(files) if _is_data(name)]
    if not found:
        endings = ", ".join(_ENDINGS)
        raise DataError(f"{folder}: no data files in this folder", f"known endings: {endings}")
    return found


def is_store(folder: Path) -> bool:
    """True: the folder holds what prepare-data writes."""
    return (folder / "manifest.json").is_file() and (folder / "ledger.jsonl").is_file()


def _is_data(name: str) -> bool:
    for ending in _COMPRESSED:
        name = name.removesuffix(ending)
    return name.endswith(_ENDINGS) and not name.startswith(".")


@contextmanager
def _copied(stream: BinaryIO) -> Iterator[Path]:
    with tempfile.NamedTemporaryFile(prefix="sftctl-") as file:
        shutil.copyfileobj(stream, file, 1 << 20)
        file.flush()
        yield Path(file.name)
