"""A part of a file that can be read like a file. The length of one read is limited."""

import io
from typing import IO

_LONGEST_READ_BYTES = 1 << 25  # a hostile zip archive can claim that its directory has any length


class Window:
    """`num_bytes` of a stream, from `begin` on. A read that is too long raises ValueError."""

    def __init__(self, stream: IO[bytes], begin: int = 0, num_bytes: int | None = None) -> None:
        self._stream = stream
        self._position = 0
        end = stream.seek(0, io.SEEK_END)
        self.begin = begin
        self.num_bytes = end - begin if num_bytes is None else num_bytes
        if not 0 <= begin <= begin + self.num_bytes <= end:
            raise ValueError(f"bytes {begin} to {begin + self.num_bytes} of {end}")
        stream.seek(begin)

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.num_bytes}[whence]
        if base + offset < 0:
            raise ValueError("a position before the start of the file")
        self._position = base + offset
        self._stream.seek(self.begin + self._position)
        return self._position

    def read(self, count: int = -1) -> bytes:
        rest = max(0, self.num_bytes - self._position)
        count = rest if count < 0 else min(count, rest)
        if count > _LONGEST_READ_BYTES:
            raise ValueError(f"{count} bytes in one read are too many")
        return self._advance(self._stream.read(count))

    def readline(self) -> bytes:
        rest = min(self.num_bytes - self._position, _LONGEST_READ_BYTES)
        return self._advance(self._stream.readline(max(0, rest)))

    def _advance(self, data: bytes) -> bytes:
        self._position += len(data)
        return data
