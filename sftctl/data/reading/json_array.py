"""Find the ends of the elements of a JSON array, without parsing the elements."""

import numpy as np
import numpy.typing as npt

_QUOTE, _BACKSLASH, _COMMA = ord('"'), ord("\\"), ord(",")
_USUAL_RUN = 16  # in a shorter series of backslashes, each backslash is counted by itself
# A translation table: brackets, braces and commas are kept, all other bytes become 0.
_STRUCTURE = bytes(byte if byte in b"{}[]," else 0 for byte in range(256))
_DEPTH_CHANGE = np.zeros(256, dtype=np.int64)
_DEPTH_CHANGE[list(b"{[")], _DEPTH_CHANGE[list(b"}]")] = 1, -1


class ArrayScanner:
    """Finds the ends of elements in the bytes after the `[` of an array, one chunk at a time.

    An element may span chunks. Elements need not be valid JSON.
    """

    def __init__(self) -> None:
        self.is_closed = False
        self._depth = 1
        self._in_string = False
        self._next_is_escaped = False

    def ends(self, chunk: bytes) -> list[int]:
        """Positions in `chunk` of the commas between elements, and of the closing bracket."""
        if self._next_is_escaped:
            chunk = b"x" + chunk[1:]
        quotes = self._quotes(chunk)
        structure = np.flatnonzero(np.frombuffer(chunk.translate(_STRUCTURE), dtype=np.uint8))
        quotes_before = np.searchsorted(quotes, structure) + self._in_string
        structure = structure[quotes_before % 2 == 0]  # not inside a string
        kinds = np.frombuffer(chunk, dtype=np.uint8)[structure]
        depths = self._depth + np.cumsum(_DEPTH_CHANGE[kinds])
        closing = np.flatnonzero(depths == 0)[:1]
        ends = structure[(kinds == _COMMA) & (depths == 1)]
        if len(closing):
            self.is_closed = True
            closing = structure[closing]
            ends = np.concatenate([ends[ends < closing], closing])
        elif len(depths):
            self._depth = int(depths[-1])
        self._in_string ^= len(quotes) % 2 == 1
        self._next_is_escaped = (len(chunk) - len(chunk.rstrip(b"\\"))) % 2 == 1
        return [int(end) for end in ends]

    def _quotes(self, chunk: bytes) -> npt.NDArray[np.int64]:
        """Positions of the quotes that are not escaped by a backslash."""
        data = np.frombuffer(chunk, dtype=np.uint8)
        quotes = np.flatnonzero(data == _QUOTE)
        escaped = np.zeros(len(quotes), dtype=bool)
        pending = np.flatnonzero(data[quotes - 1] == _BACKSLASH)  # may wrap to -1
        for distance in range(1, _USUAL_RUN):
            pending = pending[quotes[pending] >= distance]
            pending = pending[data[quotes[pending] - distance] == _BACKSLASH]
            if not len(pending):
                return quotes[~escaped]
            escaped[pending] ^= True
        # A longer series of backslashes begins after the last byte that is not a backslash.
        others = np.flatnonzero(data != _BACKSLASH)
        before = np.searchsorted(others, quotes[pending]) - 1
        starts = np.where(before >= 0, others[before] + 1, 0)
        escaped[pending] = (quotes[pending] - starts) % 2 == 1
        return quotes[~escaped]
