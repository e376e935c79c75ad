"""Read the rows of a file: the bytes of each row and its line, unparsed, in bounded memory."""

from collections.abc import Iterator
from pathlib import Path

from sftctl import jsonio
from sftctl.data.ledger import BadRow, SourceLine
from sftctl.data.reading.compressed import CutOff, Reader, open_plain
from sftctl.data.reading.json_array import ArrayScanner
from sftctl.data.reading.parquet import is_parquet, parquet_rows
from sftctl.data.reading.sources import unreadable
from sftctl.errors import DataError

MAX_ROW_BYTES = 1 << 24
"""A longer row is skipped without being held in memory."""

_CHUNK_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"
_SPACE = b" \t\r\n"

Raw = bytes | BadRow
"""The bytes of a row, or why they can't be read."""


def raw_rows(path: Path, name: str) -> Iterator[tuple[SourceLine, Raw]]:
    """All rows of a file, which messages call `name`. Blank lines are skipped.

    Raises DataError if the file can't be read.
    """
    try:
        for line, row in _rows(path, name):
            yield SourceLine(name, line), row
    except OSError as problem:
        raise unreadable(name, problem) from problem


def _rows(path: Path, name: str) -> Iterator[tuple[int, Raw]]:
    if is_parquet(path):
        yield from parquet_rows(path, name)
        return
    last = 0
    try:
        with open_plain(path, name) as file:
            read = _elements if _begins_an_array(file, name) else _lines
            for line, row in read(file, name):
                last = line
                yield line, row
    except CutOff as problem:
        message = f"{name}:{last + 1}: the compressed data ends or is damaged here: {problem}"
        yield last + 1, BadRow("cut_off", message, "the rows before it are complete")


def _begins_an_array(file: Reader, name: str) -> bool:
    start: bytes = file.peek(_CHUNK_BYTES)
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{name}: is UTF-16", "convert the file to UTF-8")
    return start.removeprefix(_BOM).lstrip(_SPACE).startswith(b"[")


def _lines(file: Reader, name: str) -> Iterator[tuple[int, Raw]]:
    """The rows of JSON lines."""
    number = 0
    while text := file.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(text) > MAX_ROW_BYTES:
            while text and not text.endswith(b"\n"):
                text = file.readline(_CHUNK_BYTES)
            yield number, _oversized(name, number)
            continue
        has_newline = text.endswith(b"\n")
        if row := text.removeprefix(_BOM if number == 1 else b"").strip(_SPACE):
            yield number, row if has_newline else _last_line(row, name, number)


def _last_line(row: bytes, name: str, number: int) -> Raw:
    """A last line without a newline: a complete row, or the beginning of one in a cut file."""
    try:
        jsonio.loads(row)
    except jsonio.JSONDecodeError as problem:
        if not row.endswith(b"}") or "end of data" in problem.msg:
            return _cut_off(name, number)
    return row


def _elements(file: Reader, name: str) -> Iterator[tuple[int, Raw]]:
    """The elements of one JSON array, each with the line on which it begins."""
    line, chunk = 1, file.read1(_CHUNK_BYTES)
    while b"[" not in chunk:  # only white space and a byte order mark come before it
        line += chunk.count(b"\n")
        chunk = file.read1(_CHUNK_BYTES)
    before, _, rest = chunk.partition(b"[")
    scanner, element = ArrayScanner(), _Element(name, line + before.count(b"\n"))
    num_elements = 0
    chunks = _chunks(file, rest)
    for chunk in chunks:
        start = 0
        for end in scanner.ends(chunk):
            element.add(chunk[start:end])
            is_last = scanner.is_closed and chunk[end : end + 1] != b","
            if not (is_last and num_elements == 0 and element.is_blank):  # [] has no element
                yield element.take()
            num_elements += 1
            start = end + 1
        element.add(chunk[start:])
        if scanner.is_closed:
            break
    else:
        yield element.start, _cut_off(name, element.start)
        return
    while element.is_blank and (chunk := next(chunks, b"")):
        element.add(chunk)
    if not element.is_blank:
        message = f"{name}:{element.start}: broken JSON: more text after the array"
        yield element.start, BadRow("broken_json", message)


def _chunks(file: Reader, first: bytes) -> Iterator[bytes]:
    """`first`, unless it is empty, and the rest of the file."""
    chunk = first or file.read1(_CHUNK_BYTES)
    while chunk:
        yield chunk
        chunk = file.read1(_CHUNK_BYTES)


class _Element:
    """Collects the bytes of one element, and the line on which it begins."""

    def __init__(self, name: str, line: int) -> None:
        self.start = line
        self._name = name
        self._line = line
        self._pieces: list[bytes] = []
        self._num_bytes = 0

    @property
    def is_blank(self) -> bool:
        return self._num_bytes == 0

    def add(self, piece: bytes) -> None:
        newlines = piece.count(b"\n")
        if self.is_blank:
            text = piece.lstrip(_SPACE)
            self.start = self._line + newlines - text.count(b"\n")
            piece = text
        self._line += newlines
        self._num_bytes += len(piece)
        if self._num_bytes <= MAX_ROW_BYTES:
            self._pieces.append(piece)
        else:
            self._pieces.clear()

    def take(self) -> tuple[int, Raw]:
        """The line and bytes of the complete element. What is added next is a new element."""
        row: Raw = b"".join(self._pieces).rstrip(_SPACE)
        if self._num_bytes > MAX_ROW_BYTES:
            row = _oversized(self._name, self.start)
        elif not row:
            row = BadRow("broken_json", f"{self._name}:{self.start}: broken JSON: a row is missing")
        start, self.start = self.start, self._line
        self._pieces.clear()
        self._num_bytes = 0
        return start, row


def _oversized(name: str, line: int) -> BadRow:
    return BadRow("oversized", f"{name}:{line}: the row is longer than {MAX_ROW_BYTES >> 20} MiB")


def _cut_off(name: str, line: int) -> BadRow:
    message = f"{name}:{line}: the file ends within this row"
    return BadRow("cut_off", message, "the rows before it are complete")
