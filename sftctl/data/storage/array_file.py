"""ArrayFile: reads parts of a one-dimensional .npy file.

The file is read, not mapped into memory. If a mapped file becomes shorter, the system kills the
process (SIGBUS), and Python can't turn this into an error. A read that returns too few bytes can be
turned into an error.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from sftctl.data.manifest import PREPARE_AGAIN, PUT_BACK
from sftctl.environment import read_at
from sftctl.errors import DataError


class ArrayFile:
    """An open .npy file. Threads and forked processes may read from it at the same time."""

    __slots__ = ("_begin", "_dtype", "length", "opened", "path")

    def __init__(self, path: Path, dtype: type[np.generic]) -> None:
        """Raises DataError if the file is missing, or is not an array of this type."""
        self.path, self._dtype = path, np.dtype(dtype)
        try:
            with path.open("rb") as file:
                self.length = _length(file, self._dtype)
                self._begin = file.tell()
                self.opened: _Opened | None = _Opened(os.dup(file.fileno()))
        except FileNotFoundError as problem:
            raise DataError(f"{path}: missing from the store", PREPARE_AGAIN) from problem
        except (OSError, ValueError, EOFError) as problem:
            raise DataError(f"{path}: damaged: {problem}", PREPARE_AGAIN) from problem

    def close(self) -> None:
        """Close the file. The next read opens it again."""
        self.opened = None  # a thread that is reading keeps the file open until the read is done

    def read(self, start: int, count: int) -> npt.NDArray[Any]:
        """Elements `start` to `start + count`, exclusive. Raises DataError as `read_rows` does."""
        values = np.empty(count, self._dtype)
        if count:
            self.read_rows(values.data.cast("B"), ((start, count),))
        return values

    def read_rows(self, buffer: memoryview, rows: Iterable[tuple[int, int]]) -> None:
        """Fill `buffer` with several rows, joined. A row is (first element, number of elements).

        Raises DataError if the file is too short, or if it can't be read.
        """
        size, end = self._dtype.itemsize, 0
        try:
            opened = self.opened or self._open()
            for start, count in rows:
                part = buffer[end : end + count * size]
                end += len(part)
                place = self._begin + start * size
                if (done := read_at(opened.descriptor, part, place)) != len(part):
                    self._read_rest(opened.descriptor, part[done:], place + done)
        except OSError as problem:
            raise DataError(f"{self.path}: {problem.strerror}", PUT_BACK) from problem

    def _open(self) -> "_Opened":
        self.opened = opened = _Opened(os.open(self.path, os.O_RDONLY | os.O_CLOEXEC))
        return opened

    def _read_rest(self, descriptor: int, rest: memoryview, place: int) -> None:
        """Read the rest of a row, because one call of the system may read only a part."""
        while len(rest):
            done = read_at(descriptor, rest, place)
            if done == 0:
                raise DataError(
                    f"{self.path}: became shorter while it was used: it ends before byte "
                    f"{place + len(rest)}",
                    PUT_BACK,
                )
            rest, place = rest[done:], place + done


class _Opened:
    """A file descriptor. It is closed when the last reference to this object is gone."""

    __slots__ = ("descriptor",)

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(
        self, close: Callable[[int], None] = os.close
    ) -> None:  # when Python exits, the module `os` may be gone
        close(self.descriptor)


def _length(file: BinaryIO, dtype: np.dtype[Any]) -> int:
    """The number of elements in the header. Raises ValueError if the type or file size is wrong."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0
    shape, _, found = (read if version == (1, 0) else np.lib.format.read_array_header_2_0)(file)
    if len(shape) != 1 or found != dtype:
        raise ValueError(f"holds {found} of shape {shape}")
    size = os.fstat(file.fileno()).st_size
    if size != file.tell() + shape[0] * dtype.itemsize:
        raise ValueError(f"{size} bytes do not hold {shape[0]} elements")
    return int(shape[0])


def read_array(path: Path, dtype: type[np.generic]) -> npt.NDArray[Any]:
    """All elements of a file, as a read-only array. Raises DataError as `ArrayFile` does."""
    file = ArrayFile(path, dtype)
    values = file.read(0, file.length)
    values.flags.writeable = False
    return values
