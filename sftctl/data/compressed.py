"""Opens an input as a stream of its plain bytes: as it lies, gzip or zstandard, told by content."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from sftctl.errors import DataError

_GZIP, _ZSTANDARD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_BUFFER_BYTES = 1 << 16  # what is lost before the place where a stream is damaged
_READ_BYTES = 1 << 20

Reader = Any
"""What reads like io.BufferedReader: read1, readline, peek."""


class CutOff(Exception):
    """A compressed stream that is damaged, or ends before its end; says how."""


@contextmanager
def open_plain(path: Path, name: str) -> Iterator[Reader]:
    """The bytes of `path`, decompressed as they are read: memory holds a buffer of them at most."""
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
            f"{name}: reading zstandard needs a package that is not installed",
            "pip install zstandard",
        ) from None
    stream: Any = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
    with io.BufferedReader(stream, _BUFFER_BYTES) as reader:
        try:
            yield reader
        except zstandard.ZstdError as problem:
            raise CutOff(str(problem)) from problem
