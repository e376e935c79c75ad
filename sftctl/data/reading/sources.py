"""Find the input files: named files, folders, patterns and standard input, each with its hash."""

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

    path: Path  # where to read it; a temporary copy of standard input or a pipe
    name: str  # its name in messages and the ledger
    sha256: str


@contextmanager
def find_sources(inputs: Sequence[Path]) -> Iterator[list[Source]]:
    """The files that the inputs name, in order. Raises DataError for an input without files.

    A folder means all data files below it, sorted by name; a pattern means all its matches.
    Standard input and pipes can be read only once, so they are copied to a temporary file.
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
    """Raise DataError if `path` names no file. Nothing is read."""
    if str(path) == STANDARD_INPUT:
        raise DataError(
            "--data -: train does not read standard input, because it can be read only once",
            "run `sftctl prepare-data - --output STORE` first, then train with --data STORE",
        )
    if not path.exists() and not glob.has_magic(str(path)):
        raise DataError(f"{path}: no such file or directory", _nearby(path))
    if not path.exists():
        _files(path)


def _nearby(path: Path) -> str:
    """A hint for a path that does not exist."""
    siblings = os.listdir(path.parent) if path.parent.is_dir() else []
    near = get_close_matches(path.name, siblings, n=1)
    if near:
        return f"did you mean {path.parent / near[0]}?"
    return "name a file, folder or pattern of conversations; train also accepts a prepared store"


def unreadable(name: str, problem: OSError) -> DataError:
    """The error for an input that can't be read, with the system's reason."""
    reason = (problem.strerror or str(problem)).lower()
    if isinstance(problem, FileNotFoundError):
        return DataError(f"{name}: {reason}", _nearby(Path(name)))
    return DataError(
        f"{name}: {reason}",
        "check that the file is complete and that you have permission to read it",
    )


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
                "* matches any part of one name, ** any number of folders",
            )
        return [file for match in matches for file in _files(match)]
    return [path]


def _below(folder: Path) -> list[Path]:
    """The data files in a folder and its subfolders, without hidden ones and token stores."""
    if is_store(folder):
        raise DataError(
            f"{folder}: is a token store", "name the conversations that it was made from"
        )
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
    """Whether the folder is a token store, as prepare-data writes it."""
    return (folder / "manifest.json").is_file() and (folder / "ledger.jsonl").is_file()


def _is_data(name: str) -> bool:
    for ending in _COMPRESSED:
        name = name.removesuffix(ending)
    return name.endswith(_ENDINGS) and not name.startswith(".")


@contextmanager
def _copied(stream: BinaryIO) -> Iterator[Path]:
    """A temporary file with the rest of a stream."""
    with tempfile.NamedTemporaryFile(prefix="sftctl-") as file:
        shutil.copyfileobj(stream, file, 1 << 20)
        file.flush()
        yield Path(file.name)
