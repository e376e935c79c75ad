"""Open an input as a stream of uncompressed bytes. gzip and zstandard are found by content."""

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from sftctl.errors import DataError

COMPRESSED = (".gz", ".zst")
"""File extensions of compressed files."""

_GZIP, _ZSTANDARD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_BUFFER_BYTES = 1 << 16  # up to so many bytes before a damaged place are not returned
_READ_BYTES = 1 << 20
_FED_BYTES = 1 << 10  # so few compressed bytes at a time, because 4 bytes can become 128 KiB

Reader = Any
"""An object with the reading methods of io.BufferedReader: read1, readline, peek."""


class CutOff(Exception):
    """A compressed stream that is damaged or incomplete. The message has the details."""


@contextmanager
def open_plain(path: Path, name: str) -> Iterator[Reader]:
    """Open `path` for reading. Compressed content is decompressed while it is read.

    Reading raises CutOff if the compressed data is damaged or incomplete. The memory is bounded.
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
    """The decompressed bytes of zstandard frames, as a raw stream for io.BufferedReader.

    Raises CutOff if the file ends within a frame. (The stream of the library accepts such a file.)
    """

    closed = False

    def __init__(self, file: BinaryIO, new_frame: Callable[[], Any]) -> None:
        self._file, self._new_frame = file, new_frame
        self._frame: Any = None  # the decompressor of the current frame
        self._fed = self._plain = b""

    def readable(self) -> bool:
        return True

    def flush(self) -> None:
        """Does nothing. io.BufferedReader needs this method."""

    def close(self) -> None:
        self.closed = True

    def readinto(self, buffer: memoryview) -> int:
        """Write the next decompressed bytes into `buffer`. Returns their number, 0 at the end."""
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
