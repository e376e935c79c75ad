"""CSV and TSV: recognized by name or header, read as rows; a broken row affects no other row."""

import gzip
from pathlib import Path

import pytest

from sftctl.data.conversations.columns import Columns
from sftctl.data.reading.rows import MAX_ROW_BYTES, raw_rows
from sftctl.errors import DataError
from tests.toys.data import file_of, rows_of

PAIR = {"prompt": "Name a river.", "completion": "The Elbe."}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "prompt,completion\nName a river.,The Elbe.\n"),
        ("a.csv", '\ufeffprompt,completion\r\n"Name a river.","The Elbe."\r\n'),
        ("a.csv", "prompt;completion\nName a river.;The Elbe."),
        ("a.tsv", "prompt\tcompletion\nName a river.\tThe Elbe.\n"),
        ("a.txt", "prompt\tcompletion\nName a river.\tThe Elbe.\n"),
        ("a.json", "prompt,completion\n\nName a river.,The Elbe.\n"),
        ("rows", " prompt , completion \nName a river.,The Elbe.\n"),
    ],
)
def test_the_header_names_the_columns(tmp_path: Path, name: str, content: str) -> None:
    [(_, row)] = raw_rows(file_of(tmp_path, name, content), name)
    assert rows_of(tmp_path / name)[0][1] == PAIR
    assert isinstance(row, bytes)


def test_lines_count_where_a_row_begins(tmp_path: Path) -> None:
    text = 'prompt,completion\n"a\nb",c\nd\ne,f,g\n"h, ""i""",j\n'
    path = file_of(tmp_path, "a.csv.gz", gzip.compress(text.encode()))
    assert rows_of(path) == [
        (2, {"prompt": "a\nb", "completion": "c"}),
        (4, "bad_shape"),
        (5, "bad_shape"),
        (6, {"prompt": 'h, "i"', "completion": "j"}),
    ]


@pytest.mark.parametrize(
    ("rest", "reason"),
    [
        (b'"a,b', "cut_off"),
        (b"a,\xff\n", "invalid_utf8"),
        (b'"a"b,c\n', "bad_shape"),
        (b"a," + b"x" * (MAX_ROW_BYTES + 1) + b"\n", "oversized"),
    ],
)
def test_a_broken_row_costs_only_itself(tmp_path: Path, rest: bytes, reason: str) -> None:
    path = file_of(tmp_path, "a.csv", b"prompt,completion\na,b\n" + rest)
    assert rows_of(path) == [(2, {"prompt": "a", "completion": "b"}), (3, reason)]


@pytest.mark.parametrize(
    ("header", "hint"),
    [
        ("Prompt,Completion", "--columns prompt=Prompt,completion=Completion"),
        ("input,output", "--columns prompt=input,completion=output"),
        ("a,b", "rename the keys"),
        ("Name a river.,The Elbe.", "named in the first line"),
    ],
)
def test_other_columns_are_refused_with_a_way_to_read_them(
    tmp_path: Path, header: str, hint: str
) -> None:
    with pytest.raises(DataError) as caught:
        rows_of(file_of(tmp_path, "a.csv", f"{header}\nx,y\n"))
    assert caught.value.message.startswith("rows: a table without the columns of a known row shape")
    assert caught.value.hint is not None
    assert hint in caught.value.hint


def test_mapped_columns_and_the_column_text_are_known(tmp_path: Path) -> None:
    path = file_of(tmp_path, "a.csv", "q,a\nx,y\n")
    columns: Columns = (("prompt", "q"), ("completion", "a"))
    assert [row for _, row in raw_rows(path, "a.csv", "auto", columns)] == [b'{"q":"x","a":"y"}']
    path = file_of(tmp_path, "b.csv", "text,id\nx,1\n")
    assert [row for _, row in raw_rows(path, "b.csv", "text")] == [b'{"text":"x","id":"1"}']


def test_json_lines_called_csv_are_json_lines(tmp_path: Path) -> None:
    assert rows_of(file_of(tmp_path, "a.csv", '{"a": 1}\n')) == [(1, {"a": 1})]
