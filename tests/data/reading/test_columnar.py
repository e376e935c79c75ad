"""Rows of Parquet and Arrow files."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from sftctl.data.reading.columnar import is_columnar, unread_columns
from sftctl.errors import DataError
from tests.toys.data import file_of, rows_of

pyarrow = pytest.importorskip("pyarrow")

ROWS = [{"messages": [{"role": "user", "content": str(i)}], "id": i} for i in range(600)]


def saved(folder: Path, rows: list[dict[str, Any]], ending: str) -> Path:
    """The rows as Parquet, as an Arrow stream (as datasets saves them) or as an Arrow file."""
    import pyarrow.parquet as parquet

    table = pyarrow.Table.from_pylist(rows)
    path = folder / f"rows{ending}"
    if ending == ".parquet":
        parquet.write_table(table, path)
        return path
    new = pyarrow.ipc.new_stream if ending == ".stream" else pyarrow.ipc.new_file
    with new(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=500)
    return path


@pytest.mark.parametrize("ending", [".parquet", ".stream", ".file"])
def test_rows_are_numbered_and_columns_that_decide_nothing_are_not_read(
    tmp_path: Path, ending: str
) -> None:
    path = saved(tmp_path, ROWS, ending)
    assert is_columnar(path)
    assert unread_columns(path, "rows") == ("id",)
    assert rows_of(path) == [(i + 1, {"messages": ROWS[i]["messages"]}) for i in range(600)]


@pytest.mark.parametrize(
    ("value", "is_filled"),
    [
        (b"\xff", True),
        (None, False),
        ([b"\xff"], True),
        ([], False),
        ({"bytes": b"\xff", "path": None}, True),
        ({"bytes": None, "path": None}, False),
    ],
)
def test_a_media_column_is_only_tested_for_being_filled(
    tmp_path: Path, value: Any, is_filled: bool
) -> None:
    rows = [ROWS[0] | {"images": value}, ROWS[0] | {"images": value}]
    found = rows_of(saved(tmp_path, rows, ".parquet"))
    assert [row["images"] for _, row in found] == [is_filled, is_filled]


def test_bytes_are_text_and_decimals_are_numbers(tmp_path: Path) -> None:
    rows = [
        {"prompt": "é".encode(), "completion": "x", "tools": [{"a": Decimal("2.00")}]},
        {"prompt": b"a", "completion": "x", "tools": [{"a": Decimal("2.50")}]},
        {"prompt": b"\xff", "completion": "x", "tools": []},
    ]
    assert rows_of(saved(tmp_path, rows, ".parquet")) == [
        (1, {"prompt": "é", "completion": "x", "tools": [{"a": 2}]}),
        (2, {"prompt": "a", "completion": "x", "tools": [{"a": 2.5}]}),
        (3, "not_text"),
    ]


def test_a_file_without_a_column_of_a_known_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        rows_of(saved(tmp_path, [{"words": "a", "id": 1}], ".parquet"))
    expected = "rows: a table without the columns of a known row shape; its columns: words, id"
    assert caught.value.message == expected


@pytest.mark.parametrize("ending", [".parquet", ".stream", ".file"])
def test_a_damaged_file_is_refused(tmp_path: Path, ending: str) -> None:
    path = saved(tmp_path, ROWS, ending)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(DataError, match="rows: damaged Parquet or Arrow: "):
        rows_of(path)
    with pytest.raises(DataError, match="rows: damaged Parquet or Arrow: "):
        rows_of(file_of(tmp_path, "b.parquet", b"PAR1 and no more"))


def test_the_order_of_keys_stays(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "b", "tools": [{"name": "f", "about": "x"}]}]
    [(_, found)] = rows_of(saved(tmp_path, rows, ".parquet"))
    assert list(found["tools"][0]) == ["name", "about"]
