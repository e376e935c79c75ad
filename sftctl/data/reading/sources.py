"""Find the input files (from files, folders, patterns and standard input) and hash them."""

import glob
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import BinaryIO

from sftctl.data.reading.folders import TRAINING, Wanted, files_below, matching
from sftctl.disk import hash_file, who_may_not_read
from sftctl.errors import DataError

STANDARD_INPUT = "-"
_URL = re.compile(r"[a-z][a-z0-9+.-]+:/")


@dataclass(frozen=True, slots=True)
class Source:
    """An input file."""

    path: Path  # the file to read; for standard input or a pipe, a temporary copy
    name: str  # the name for messages and the ledger
    sha256: str
    source: str = ""  # name of the source in a mixture; empty: no name


@contextmanager
def find_sources(
    inputs: Sequence[Path], wanted: Wanted = TRAINING, left_out: list[str] | None = None
) -> Iterator[list[Source]]:
    """The files of all inputs, in order. Raises DataError for an input without files.

    An input is a file, a folder, a pattern or standard input. The data files of a folder are sorted
    by name. Files that are left out of a folder or pattern are added to `left_out`, with the
    reason. Standard input and pipes can be read only once, so they are copied to temporary files,
    which exist until the `with` block ends.
    """
    with ExitStack() as stack:
        sources = []
        for path in (file for item in inputs for file in _files(item, wanted, left_out)):
            name = os.fsencode(path).decode("utf-8", "backslashreplace")  # not all names are UTF-8
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


def require_unchanged(source: Source) -> None:
    """Raise DataError if the file has changed since it was hashed. The rows may then be partly old
    and partly new."""
    try:
        is_same = hash_file(source.path).sha256 == source.sha256
    except OSError as problem:
        raise unreadable(source.name, problem) from problem
    if not is_same:
        raise DataError(
            f"{source.name}: changed while it was prepared",
            "wait until the file no longer changes, then run the same command again",
        )


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
        _files(path, TRAINING)


def _nearby(path: Path) -> str:
    """A hint for a path that does not exist."""
    if _URL.match(str(path)):
        return "sftctl reads only files on this machine: download the data first"
    if len(path.parts) == 2 and not path.suffix and not path.parent.exists():
        return "is this a data set on the hub? Download its files first, and name these files"
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
    hint = "check that the file is complete and that you have permission to read it"
    return DataError(f"{name}: {reason}", who_may_not_read(Path(name)) or hint)


def _files(path: Path, wanted: Wanted, left_out: list[str] | None = None) -> list[Path]:
    """The files of one input. Files that are left out are added to `left_out`."""
    left_out = [] if left_out is None else left_out
    if str(path) == STANDARD_INPUT:
        return [path]
    if path.is_dir():
        return files_below(path, wanted, left_out)
    if not path.exists() and glob.has_magic(str(path)):
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        if not matches:
            raise DataError(
                f"{path}: no file matches this pattern",
                "* matches any part of one name, ** any number of folders",
            )
        files = [match for match in matches if not match.is_dir()]
        meant = set(matching(files, path, wanted, left_out))
        return [
            file
            for match in matches
            for file in ([match] if match in meant else [])
            + (_files(match, wanted, left_out) if match.is_dir() else [])
        ]
    return [path]


@contextmanager
def _copied(stream: BinaryIO) -> Iterator[Path]:
    """A temporary file with the content of a stream. It is deleted after the `with` block."""
    with tempfile.NamedTemporaryFile(prefix="sftctl-") as file:
        shutil.copyfileobj(stream, file, 1 << 20)
        file.flush()
        yield Path(file.name)
