"""The rows of a Parquet file as JSON text, so that they are parsed like all other rows."""

from collections.abc import Iterator
from pathlib import Path

from sftctl import jsonio
from sftctl.data.conversations.shapes import ROW_KEYS, known_shapes
from sftctl.errors import DataError

_ROWS_AT_A_TIME = 256


def is_parquet(path: Path) -> bool:
    """Whether the content begins like Parquet."""
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def parquet_rows(path: Path, name: str) -> Iterator[tuple[int, bytes]]:
    """(row number from 1, JSON text). Only columns that belong to a row shape are read."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise DataError(
            f"{name}: reading Parquet needs the package pyarrow", "pip install pyarrow"
        ) from None
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            known = [column for column in columns if column in ROW_KEYS]
            if not known:
                raise DataError(
                    f"{name}: no column of a known row shape; its columns: {', '.join(columns)}",
                    f"a row needs {known_shapes()}: rename the columns",
                )
            for batch in file.iter_batches(_ROWS_AT_A_TIME, columns=known):
                for row in batch.to_pylist():
                    number += 1
                    yield number, jsonio.dump_line(row).strip()
    except pyarrow.ArrowException as problem:
        raise DataError(
            f"{name}: damaged Parquet: {problem}", "copy or download the file again"
        ) from problem
