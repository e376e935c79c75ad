"""Read the rows of a file: the bytes and the line number of each row, in bounded memory.

JSON is not parsed here. Rows of other formats are converted to JSON text.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from sftctl import jsonio
from sftctl.config.schema import Format
from sftctl.data.conversations.columns import Columns
from sftctl.data.ledger import BadRow, SourceLine
from sftctl.data.reading.columnar import columnar_rows, is_columnar
from sftctl.data.reading.compressed import CutOff, Reader, open_plain
from sftctl.data.reading.documents import begins_with_row, documents, is_document_name
from sftctl.data.reading.file_kinds import (
    looks_like_json,
    not_json,
    refuse_one_object,
    refuse_other_kind,
)
from sftctl.data.reading.json_array import ArrayScanner
from sftctl.data.reading.sources import unreadable
from sftctl.data.reading.tables import is_table, is_table_name, table_rows

MAX_ROW_BYTES = 1 << 24
"""A longer row is skipped. It is never in memory as a whole."""

_CHUNK_BYTES = 1 << 20
_SHORT_BYTES = 1 << 12
_BOM = b"\xef\xbb\xbf"
_SPACE = b" \t\r\n"

Raw = bytes | BadRow
"""The bytes of a row, or the error if the row can't be read."""


def raw_rows(
    path: Path, name: str, format: Format = "auto", columns: Columns = ()
) -> Iterator[tuple[SourceLine, Raw]]:
    """All rows of a file. Blank lines are skipped. `name` is the name of the file in messages.

    A table must have the columns of a known row shape. `format` limits the shapes, and `columns`
    renames columns. Plain text is read only if `format` is "text". Raises DataError if the file
    can't be read.
    """
    try:
        yield from _rows(path, name, format, columns)
    except OSError as problem:
        raise unreadable(name, problem) from problem


def _rows(
    path: Path, name: str, format: Format, columns: Columns
) -> Iterator[tuple[SourceLine, Raw]]:
    if is_columnar(path):
        yield from _by_line(name, columnar_rows(path, name, columns))
        return
    last = 0
    try:
        with open_plain(path, name) as file:
            for source, row in _plain_rows(file, path, name, format, columns):
                last = source.line
                yield source, row
    except CutOff as problem:
        message = f"{name}:{last + 1}: the compressed data ends or is damaged here: {problem}"
        where = SourceLine(name, last + 1)
        yield where, BadRow("cut_off", message, "the rows before it are complete")


def _by_line(name: str, rows: Iterable[tuple[int, Raw]]) -> Iterator[tuple[SourceLine, Raw]]:
    """Replace the line number of each row by a SourceLine."""
    for line, row in rows:
        yield SourceLine(name, line), row


def _plain_rows(
    file: Reader, path: Path, name: str, format: Format, columns: Columns
) -> Iterator[tuple[SourceLine, Raw]]:
    """The rows of JSON lines, a JSON array, a table or a document."""
    start: bytes = file.peek(_CHUNK_BYTES)
    refuse_other_kind(start, name)
    text = start.removeprefix(_BOM).lstrip(_SPACE)
    is_json = text.startswith((b"{", b"["))
    if format == "text" and is_document_name(path.name) and not begins_with_row(text):
        return _by_line(name, documents(file, name, MAX_ROW_BYTES))
    if is_table_name(path.name) and not is_json:
        return _by_line(name, table_rows(file, name, format, columns, MAX_ROW_BYTES))
    if text.startswith(b"["):
        return _elements(file, name)
    has_line = b"\n" in text or len(text) < _SHORT_BYTES  # False: the first line may be very long
    if text and has_line and not is_json and not looks_like_json(start):
        if is_table(text, format, columns):
            return _by_line(name, table_rows(file, name, format, columns, MAX_ROW_BYTES))
        if format == "text":
            return _by_line(name, documents(file, name, MAX_ROW_BYTES))
        raise not_json(name)
    if text.startswith(b"{") and not begins_with_row(text):
        with open_plain(path, name) as again:
            refuse_one_object(again.read(MAX_ROW_BYTES).removeprefix(_BOM).lstrip(_SPACE), name)
    return _by_line(name, _lines(file, name))


def _lines(file: Reader, name: str) -> Iterator[tuple[int, Raw]]:
    """The rows of JSON lines."""
    number = 0
    while text := file.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(text) > MAX_ROW_BYTES:
            while text and not text.endswith(b"\n"):
                text = file.readline(_CHUNK_BYTES)
            yield number, _oversized(SourceLine(name, number))
            continue
        has_newline = text.endswith(b"\n")
        if row := _without_bom(text).strip(_SPACE):
            yield number, row if has_newline else _last_line(row, name, number)


def _without_bom(text: bytes) -> bytes:
    """The line without byte order marks at its start. In joined files, any line may have a mark."""
    while text.startswith(_BOM):
        text = text.removeprefix(_BOM)
    return text


def _last_line(row: bytes, name: str, number: int) -> Raw:
    """A last line without a newline. BadRow is returned if the row is incomplete."""
    try:
        jsonio.loads(row)
    except jsonio.JSONDecodeError as problem:
        if not row.endswith(b"}") or "end of data" in problem.msg:
            return _cut_off(SourceLine(name, number))
    return row


def _elements(file: Reader, name: str) -> Iterator[tuple[SourceLine, Raw]]:
    """The elements of a JSON array, with their indices and line numbers."""
    line, chunk = 1, file.read1(_CHUNK_BYTES)
    while b"[" not in chunk:  # only white space and a byte order mark come before `[`
        line += chunk.count(b"\n")
        chunk = file.read1(_CHUNK_BYTES)
    before, _, rest = chunk.partition(b"[")
    scanner, element = ArrayScanner(), _Element(name, line + before.count(b"\n"))
    chunks = _chunks(file, rest)
    for chunk in chunks:
        start = 0
        for end in scanner.ends(chunk):
            element.add(chunk[start:end])
            is_last = scanner.is_closed and chunk[end : end + 1] != b","
            if not (is_last and element.index == 0 and element.is_blank):  # [] has no element
                yield element.take()
            start = end + 1
        element.add(chunk[start:])
        if scanner.is_closed:
            break
    else:
        where = element.source
        yield where, _cut_off(where)
        return
    while element.is_blank and (chunk := next(chunks, b"")):
        element.add(chunk)
    if not element.is_blank:
        message = f"{element.source}: broken JSON: more text after the array"
        yield element.source, BadRow("broken_json", message)


def _chunks(file: Reader, first: bytes) -> Iterator[bytes]:
    """The chunk `first` if it is not empty, then the rest of the file in chunks."""
    chunk = first or file.read1(_CHUNK_BYTES)
    while chunk:
        yield chunk
        chunk = file.read1(_CHUNK_BYTES)


class _Element:
    """Collects the bytes of the current element, its index, and its first line."""

    def __init__(self, name: str, line: int) -> None:
        self.index = 0
        self._start = line
        self._name = name
        self._first_line = self._line = line
        self._pieces: list[bytes] = []
        self._num_bytes = 0

    @property
    def is_blank(self) -> bool:
        return self._num_bytes == 0

    def add(self, piece: bytes) -> None:
        newlines = piece.count(b"\n")
        if self.is_blank:
            text = piece.lstrip(_SPACE)
            self._start = self._line + newlines - text.count(b"\n")
            piece = text
        self._line += newlines
        self._num_bytes += len(piece)
        if self._num_bytes <= MAX_ROW_BYTES:
            self._pieces.append(piece)
        else:
            self._pieces.clear()

    @property
    def source(self) -> SourceLine:
        """The place of the element. Messages name its index if the array is on one line so far."""
        is_one_line = self._line == self._first_line
        return SourceLine(self._name, self._start, self.index, shares_line=is_one_line)

    def take(self) -> tuple[SourceLine, Raw]:
        """The place and the bytes of the complete element. Then a new element begins."""
        source = self.source
        row: Raw = b"".join(self._pieces).rstrip(_SPACE)
        if self._num_bytes > MAX_ROW_BYTES:
            row = _oversized(source)
        elif not row:
            row = BadRow("broken_json", f"{source}: broken JSON: nothing between two commas")
        self._start, self.index = self._line, self.index + 1
        self._pieces.clear()
        self._num_bytes = 0
        return source, row


def _oversized(where: SourceLine) -> BadRow:
    return BadRow("oversized", f"{where}: the row is longer than {MAX_ROW_BYTES >> 20} MiB")


def _cut_off(where: SourceLine) -> BadRow:
    message = f"{where}: the file ends within this row"
    return BadRow("cut_off", message, "the rows before it are complete")
