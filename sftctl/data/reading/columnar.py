"""Read the rows of Parquet and Arrow files as JSON text, so all rows are parsed in one way."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from sftctl import jsonio
from sftctl.data.conversations.columns import LABELS, OPTIONS, Columns, preference_columns
from sftctl.data.conversations.contents import is_filled, media_keys
from sftctl.data.conversations.parsed_row import DOCUMENTS, system_columns
from sftctl.data.conversations.shapes import ROW_KEYS, is_row
from sftctl.data.conversations.unknown import ANSWERS, QUESTIONS, columns_twice, unknown_table
from sftctl.data.ledger import BadRow
from sftctl.errors import DataError

_ROWS_AT_A_TIME = 256
_PARQUET, _ARROW_FILE, _ARROW_STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"
_READ = ROW_KEYS.union(LABELS, QUESTIONS, ANSWERS, DOCUMENTS, (OPTIONS,))


def is_columnar(path: Path) -> bool:
    """Whether the first bytes of a file are those of a Parquet or Arrow file."""
    with path.open("rb") as file:
        return file.read(6).startswith((_PARQUET, _ARROW_FILE, _ARROW_STREAM))


def unread_columns(path: Path, name: str, columns: Columns = ()) -> tuple[str, ...]:
    """The columns of a Parquet or Arrow file that are not loaded."""
    with ExitStack() as stack:
        names = tuple(_opened(path, name, stack).names)
    known = _loaded(names, columns)
    return tuple(column for column in names if column not in known)


def columnar_rows(
    path: Path, name: str, columns: Columns = ()
) -> Iterator[tuple[int, bytes | BadRow]]:
    """Yield (row number from 1, JSON text) for each row. Only columns that sftctl uses are read.

    The value of a media column is replaced by true if it is filled, and otherwise by false. Raises
    DataError if the file is damaged, or if its columns match no known row shape.
    """
    number = 0
    with ExitStack() as stack:
        table = _opened(path, name, stack)
        known = _loaded(tuple(table.names), columns)
        read = [column for column in table.names if column in known]
        if len({*read}) < len(read):
            raise columns_twice(name, next(one for one in read if read.count(one) > 1))
        if not is_row({ours for ours, _ in columns} | {*table.names}) and "text" not in read:
            raise unknown_table(name, table.names)
        for rows in _whole(table.rows(read), name):
            for row in rows:
                number += 1
                yield number, _as_json(row, f"{name}:{number}")


def _loaded(names: tuple[str, ...], columns: Columns) -> frozenset[str]:
    """The names of the columns that can decide about a row."""
    mapped = {column.split(".")[0] for _, column in columns} | {column for _, column in columns}
    tools = (name for name in names if "tool" in name.lower() or "function" in name.lower())
    return _READ.union(
        mapped, tools, preference_columns(names), media_keys(names), system_columns(names)
    )


class _Table:
    """An open Parquet or Arrow file. The rows are read in small batches."""

    def __init__(self, names: list[str], batches: Any, *, is_parquet: bool) -> None:
        self.names = names
        self._batches = batches
        self._is_parquet = is_parquet

    def rows(self, columns: list[str]) -> Iterator[list[dict[str, Any]]]:
        if self._is_parquet:
            for batch in self._batches.iter_batches(_ROWS_AT_A_TIME, columns=columns):
                yield batch.to_pylist(maps_as_pydicts="strict")
            return
        for batch in self._batches:
            chosen = batch.select(columns)
            for start in range(0, chosen.num_rows, _ROWS_AT_A_TIME):
                rows = chosen.slice(start, _ROWS_AT_A_TIME)
                yield rows.to_pylist(maps_as_pydicts="strict")


def _opened(path: Path, name: str, stack: ExitStack) -> _Table:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(
            f"{name}: reading Parquet and Arrow needs the package pyarrow", "pip install pyarrow"
        ) from None
    with path.open("rb") as file:
        start = file.read(6)
    try:
        if start.startswith(_PARQUET):
            parquet = stack.enter_context(pyarrow.parquet.ParquetFile(path))
            return _Table(parquet.schema_arrow.names, parquet, is_parquet=True)
        mapped = stack.enter_context(pyarrow.memory_map(str(path)))
        if start.startswith(_ARROW_FILE):
            reader = stack.enter_context(pyarrow.ipc.open_file(mapped))
            batches: Iterable[Any] = map(reader.get_batch, range(reader.num_record_batches))
        else:
            batches = reader = stack.enter_context(pyarrow.ipc.open_stream(mapped))
        return _Table(reader.schema.names, batches, is_parquet=False)
    except (pyarrow.ArrowException, OSError) as problem:
        if getattr(problem, "errno", None):
            raise
        raise _damaged(name, problem) from problem


def _whole(batches: Iterator[list[dict[str, Any]]], name: str) -> Iterator[list[dict[str, Any]]]:
    import pyarrow

    try:
        yield from batches
    except (
        pyarrow.ArrowException,
        OSError,
        KeyError,
    ) as problem:  # KeyError: a map has a key twice
        if getattr(problem, "errno", None):  # an error of the disk, not of the content
            raise
        raise _damaged(name, problem) from problem


def _damaged(name: str, problem: Exception) -> DataError:
    what = str(problem).splitlines()[0]
    return DataError(f"{name}: damaged Parquet or Arrow: {what}", "copy or download the file again")


def _as_json(row: dict[str, Any], where: str) -> bytes | BadRow:
    for key in media_keys(tuple(row)):
        row[key] = is_filled(row[key])
    try:
        return jsonio.dump_strict(row)
    except TypeError:  # values that JSON does not have, such as bytes and decimals
        pass
    for key in row:
        try:
            row[key] = _plain(row[key])
        except UnicodeDecodeError:
            message = f"{where}: {key!r} holds bytes that are not text"
            return BadRow("not_text", message, "remove the row, or write the column as text")
    try:
        return jsonio.dump_strict(row)
    except TypeError as problem:  # an integer of more than 64 bits
        return BadRow("bad_shape", f"{where}: a value that JSON does not have: {problem}")


def _plain(value: Any) -> Any:
    """Convert a value to types of JSON: bytes to UTF-8 text, a decimal to a number."""
    match value:
        case dict():
            return {str(key): _plain(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_plain(inner) for inner in value]
        case bytes():
            return value.decode()
        case Decimal():
            return int(value) if value == value.to_integral_value() else float(value)
        case timedelta():
            return str(value)
    return value
