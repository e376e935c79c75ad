"""Open an input as a stream of plain bytes; gzip and zstandard are recognized by content."""

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from sftctl.errors import DataError

COMPRESSED = (".gz", ".zst")
"""Endings of compressed files."""

_GZIP, _ZSTANDARD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_BUFFER_BYTES = 1 << 16  # read ahead: up to so many bytes before a damaged place are lost
_READ_BYTES = 1 << 20
_FED_BYTES = 1 << 10  # decompressed at once: few, because 4 bytes can become 128 KiB

Reader = Any
"""An object with the reading methods of io.BufferedReader: read1, readline, peek."""


class CutOff(Exception):
    """A compressed stream that is damaged or incomplete; the message says how."""


@contextmanager
def open_plain(path: Path, name: str) -> Iterator[Reader]:
    """The bytes of `path`, decompressed as they are read, in a bounded buffer.

    Reading raises CutOff if the compressed data is damaged or incomplete.
    """
    with path.open("rb", buffering=_READ_BYTES) as opened:
        file: Reader = opened
        magic = file.peek(4)[:4]
        if magic == _ZSTANDARD:
            with _zstandard(file, name) as reader:
                yield reader
        elif magic.startswith(_GZIP):
            with gzip.GzipFile(fileobj=file) as unzipped:
                try:
                    yield unzipped
                except (EOFError, zlib.error, gzip.BadGzipFile) as problem:
                    raise CutOff(str(problem)) from problem
        else:
            yield file


@contextmanager
def _zstandard(file: BinaryIO, name: str) -> Iterator[Reader]:
    try:
        import zstandard
    except ImportError:
        raise DataError(
            f"{name}: reading zstandard needs the package zstandard",
            "pip install zstandard",
        ) from None
    frames: Any = _Frames(file, zstandard.ZstdDecompressor().decompressobj)
    with io.BufferedReader(frames, _BUFFER_BYTES) as reader:
        try:
            yield reader
        except zstandard.ZstdError as problem:
            raise CutOff(str(problem)) from problem


class _Frames:
    """The plain bytes of consecutive zstandard frames, as a raw stream for io.BufferedReader.

    The library's own stream accepts a file that ends within a frame. Here that is CutOff.
    """

    closed = False

    def __init__(self, file: BinaryIO, new_frame: Callable[[], Any]) -> None:
        self._file, self._new_frame = file, new_frame
        self._frame: Any = None  # the decompressor of the current frame
        self._fed = self._plain = b""

    def readable(self) -> bool:
        return True

    def flush(self) -> None:
        """Nothing to do: the stream is only read."""

    def close(self) -> None:
        self.closed = True

    def readinto(self, buffer: memoryview) -> int:
        """Put the next plain bytes into `buffer` and return their number, 0 at the end."""
        while not self._plain and (self._fed or self._feed()):
            self._frame = self._frame or self._new_frame()
            self._plain = self._frame.decompress(self._fed)
            self._fed = b""
            if self._frame.eof:
                self._fed, self._frame = self._frame.unused_data, None
        count = min(len(buffer), len(self._plain))
        buffer[:count], self._plain = self._plain[:count], self._plain[count:]
        return count

    def _feed(self) -> bool:
        self._fed = self._file.read(_FED_BYTES)
        if not self._fed and self._frame is not None:
            raise CutOff("a zstandard frame has no end")
        return bool(self._fed)
