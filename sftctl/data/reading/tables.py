"""Read the rows of CSV and TSV files with a header as JSON text."""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath

from sftctl import jsonio
from sftctl.config.schema import Format
from sftctl.data.conversations.columns import Columns
from sftctl.data.conversations.shapes import empty_column, is_row
from sftctl.data.conversations.unknown import columns_twice, unknown_table
from sftctl.data.ledger import BadRow
from sftctl.data.reading.compressed import COMPRESSED, Reader
from sftctl.errors import DataError
from sftctl.words import counted

_DELIMITERS = (",", "\t", ";", "|")
TABLES = (".csv", ".tsv", ".tab")


def is_table_name(name: str) -> bool:
    """Whether the name is that of a table, such as `a.csv` or `a.csv.gz`."""
    path = PurePath(name)
    return (path.with_suffix("") if path.suffix in COMPRESSED else path).suffix.lower() in TABLES


def is_table(start: bytes, format: Format, columns: Columns) -> bool:
    """Whether the first line of a file is a header with the columns of a known row shape."""
    line = start.decode("utf-8-sig", "replace").partition("\n")[0]
    return any(_is_known(_cells(line, mark), format, columns) for mark in _DELIMITERS)


def table_rows(
    file: Reader, name: str, format: Format, columns: Columns, max_bytes: int
) -> Iterator[tuple[int, bytes | BadRow]]:
    """Yield (line, JSON text) for each row. Raises DataError if columns match no known shape."""
    csv.field_size_limit(max_bytes)
    text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
    first = text.readline(max_bytes)
    delimiter = _delimiter(first, format, columns)
    rows = csv.reader(_with_first(first, text), delimiter=delimiter, strict=True)
    header = [cell.strip() for cell in next(rows, [])]
    if not any(header):
        raise DataError(f"{name}: no rows in this file", "the first line must name the columns")
    if not _is_known(header, format, columns):
        raise unknown_table(name, header)
    if twice := [cell for cell in header if cell and header.count(cell) > 1]:
        raise columns_twice(name, twice[0])
    table = _Table(header, delimiter, {theirs: ours for ours, theirs in columns}, format)
    line = rows.line_num + 1
    while True:
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as problem:
            yield line, _broken(name, line, str(problem))
        else:
            if len(cells) > 1 or any(cell.strip() for cell in cells):  # else the line is blank
                yield line, _row(name, line, table, cells)
        line = rows.line_num + 1


@dataclass(frozen=True, slots=True)
class _Table:
    """The columns of a table, and how to read them."""

    header: list[str]
    delimiter: str
    names: dict[str, str]  # column of the table -> sftctl's key
    format: Format

    def missing(self, cells: list[str]) -> str | None:
        """The required column whose cell is empty. None if no required cell is empty."""
        filled, empty = dict[str, str](), dict[str, str]()
        for name, cell in zip(self.header, cells, strict=True):
            (filled if cell.strip() else empty)[self.names.get(name, name)] = name
        missing = empty_column(filled, empty, self.format) if empty else None
        return None if missing is None else empty[missing]

    def holds_rows(self, cell: str) -> bool:
        """Whether a cell of a TSV probably contains other rows, because it has tabs and newlines.

        The quote at its start was probably meant as text.
        """
        return self.delimiter == "\t" and "\n" in cell and "\t" in cell


def _row(name: str, line: int, table: _Table, cells: list[str]) -> bytes | BadRow:
    header = table.header
    if any(map(table.holds_rows, cells)):
        message = f"{name}:{line}: a quote at the start of a field joins several rows to one field"
        return BadRow("bad_shape", message, "double each quote, and put the field into quotes")
    if len(cells) != len(header):
        fields = counted(len(cells), "field")
        message = f"{name}:{line}: {fields}, but the header has {len(header)}"
        return BadRow("bad_shape", message, 'put fields that contain the delimiter into "quotes"')
    if not any(cell.strip() for cell in cells):
        return BadRow("empty", f"{name}:{line}: every field is empty", "remove the row")
    if (missing := table.missing(cells)) is not None:
        message = f"{name}:{line}: the field {missing!r:.40} is empty"
        return BadRow("empty", message, "fill it, or remove the row")
    try:
        return jsonio.dump_strict(dict(zip(header, cells, strict=True)))
    except TypeError:  # bytes that are not text
        message = f"{name}:{line}: invalid UTF-8"
        return BadRow("invalid_utf8", message, "convert the file to UTF-8")


def _broken(name: str, line: int, problem: str) -> BadRow:
    if "end of data" in problem:
        message = f"{name}:{line}: the file ends within this row"
        return BadRow("cut_off", message, "the rows before it are complete")
    if "limit" in problem:
        return BadRow("oversized", f"{name}:{line}: a field of the row is too long")
    return BadRow("bad_shape", f"{name}:{line}: broken CSV: {problem}")


def _with_first(first: str, rest: io.TextIOWrapper) -> Iterator[str]:
    if first:
        yield first
    yield from rest


def _delimiter(line: str, format: Format, columns: Columns) -> str:
    """The delimiter with which the header has known columns, or else the most frequent one."""
    for mark in _DELIMITERS:
        if _is_known(_cells(line, mark), format, columns):
            return mark
    return max(_DELIMITERS, key=line.count)


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:
        return []


def _is_known(header: list[str], format: Format, columns: Columns) -> bool:
    names = {ours for ours, theirs in columns if theirs.split(".")[0] in header} | {*header}
    return "text" in names if format == "text" else is_row(names)
