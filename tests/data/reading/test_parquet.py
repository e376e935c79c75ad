"""Rows of Parquet files."""

from pathlib import Path

import pytest

from sftctl.errors import DataError
from tests.toys.data import file_of, rows_of


def test_parquet_rows_are_numbered(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    rows = [
        {"messages": [{"role": "user", "content": str(i)}], "image": b"\xff"} for i in range(600)
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = rows_of(tmp_path / "a.parquet")
    assert found == [(i + 1, {"messages": rows[i]["messages"]}) for i in range(600)]


def test_parquet_without_a_column_of_a_known_shape_is_refused(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    parquet.write_table(pyarrow.table({"text": ["a"], "id": [1]}), tmp_path / "a.parquet")
    with pytest.raises(DataError) as caught:
        rows_of(tmp_path / "a.parquet")
    expected = "rows: no column of a known row shape; its columns: text, id"
    assert caught.value.message == expected
    file_of(tmp_path, "b.parquet", b"PAR1 and no more")
    with pytest.raises(DataError, match="rows: damaged Parquet: "):
        rows_of(tmp_path / "b.parquet")
