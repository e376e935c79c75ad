"""Rows of JSON lines and JSON arrays, each with its line, and what is wrong with a file."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from sftctl.data.ledger import BadRow
from sftctl.data.reading.rows import MAX_ROW_BYTES, raw_rows
from sftctl.errors import DataError
from tests.toys.data import file_of, rows_of


def test_json_lines_are_read_with_their_line_numbers(tmp_path: Path) -> None:
    path = file_of(tmp_path, "a.jsonl", '\ufeff{"a": 1}\n\n  \r\n{"a": "é\u2028"}\r\n{"a": 3}')
    assert rows_of(path) == [(1, {"a": 1}), (4, {"a": "é\u2028"}), (5, {"a": 3})]


@pytest.mark.parametrize("indent", [None, 2])
def test_rows_of_a_json_array_have_the_line_on_which_they_begin(
    tmp_path: Path, indent: int | None
) -> None:
    values = [{"a": i, "b": {"text": "x\n，🤖"}} for i in range(5)]
    text = "\ufeff\n" + json.dumps(values, indent=indent, ensure_ascii=False)
    path = file_of(tmp_path, "a.json", text)
    lines = text.split("\n")
    for number, (line, row) in enumerate(rows_of(path)):
        assert row == values[number]
        assert "{" in lines[line - 1]
    expected = [2 + 1 + 6 * i for i in range(5)] if indent else [2] * 5
    assert [line for line, _ in rows_of(path)] == expected


def test_json_lines_may_be_called_json(tmp_path: Path) -> None:
    assert rows_of(file_of(tmp_path, "a.json", '{"a": 1}\n{"a": 2}\n')) == [
        (1, {"a": 1}),
        (2, {"a": 2}),
    ]


def test_an_array_may_be_called_json_lines(tmp_path: Path) -> None:
    path = file_of(tmp_path, "a.jsonl", '[\n  {"a": 1},\n  {"a": 2}\n]\n')
    assert rows_of(path) == [(2, {"a": 1}), (3, {"a": 2})]


@pytest.mark.parametrize("content", ["", "\n \n", "\ufeff", "[ ]", "\n[\n]\n"])
@pytest.mark.parametrize("name", ["a.json", "b.json"])
def test_a_file_without_rows_has_none(tmp_path: Path, name: str, content: str) -> None:
    assert rows_of(file_of(tmp_path, name, content)) == []


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": "unfin', [(1, {"a": 1}), (2, "cut_off")]),
        ("a.jsonl", '{"a": 1}\n{"a": tru', [(1, {"a": 1}), (2, "cut_off")]),
        ("a.jsonl", '{"a": 1}\n{"a": {"b": 1}', [(1, {"a": 1}), (2, "cut_off")]),
        ("a.json", '[{"a": 1},\n{"a": "unfin', [(1, {"a": 1}), (2, "cut_off")]),
        ("a.json", '[{"a": 1},\n\n{"a": "x"}', [(1, {"a": 1}), (3, "cut_off")]),
        ("a.json", '[{"a": 1},\n', [(1, {"a": 1}), (2, "cut_off")]),
        ("a.json", "[", [(1, "cut_off")]),
        ("a.json", '[{"a": 1},\n]', [(1, {"a": 1}), (2, "broken_json")]),
        ("a.json", '[,{"a": 1}]', [(1, "broken_json"), (1, {"a": 1})]),
        ("a.json", '[{"a": 1}]\n{}', [(1, {"a": 1}), (2, "broken_json")]),
        ("a.json", '[{"a": 1}]\n[2, 3, 4]', [(1, {"a": 1}), (2, "broken_json")]),
    ],
)
def test_damage_is_reported_as_a_row(
    tmp_path: Path, name: str, content: str, expected: list[tuple[int, Any]]
) -> None:
    assert rows_of(file_of(tmp_path, name, content)) == expected


def test_a_cut_row_has_its_line_in_the_message(tmp_path: Path) -> None:
    path = file_of(tmp_path, "a.json", '[{"a": 1},\n{"a": "unfin')
    [_, (_, cut)] = raw_rows(path, "rows")
    assert isinstance(cut, BadRow)
    assert cut.message == "rows:2: the file ends within this row"
    assert cut.hint == "the rows before it are complete"


@pytest.mark.parametrize("num_before", [2**20 - 2, 2**20 - 1])
def test_an_array_may_begin_at_the_end_of_a_chunk(tmp_path: Path, num_before: int) -> None:
    path = file_of(tmp_path, "a.json", b" " * num_before + b'[{"a": 1},\n{"a": 2}]')
    assert rows_of(path) == [(1, {"a": 1}), (2, {"a": 2})]


def test_long_runs_of_backslashes_are_counted(tmp_path: Path) -> None:
    values = ["\\" * count + end for count in (1, 2, 15, 16, 17, 40, 41) for end in ('"', "", '",')]
    path = file_of(tmp_path, "a.json", json.dumps(values))
    assert rows_of(path) == [(1, value) for value in values]


@pytest.mark.parametrize("end", [b"\n", b""])
def test_a_line_that_is_too_long_is_skipped_and_the_next_one_read(
    tmp_path: Path, end: bytes
) -> None:
    huge = b'{"a": "' + b"x" * MAX_ROW_BYTES + b'"}'
    path = file_of(tmp_path, "a.jsonl", b"{}\n" + huge + b'\n{"b": 1}' + end)
    assert rows_of(path) == [(1, {}), (2, "oversized"), (3, {"b": 1})]


@pytest.mark.parametrize("is_array", [False, True])
def test_a_row_of_exactly_the_maximum_size_is_read(tmp_path: Path, is_array: bool) -> None:
    before, after = (b"[", b"]") if is_array else (b"", b"")
    largest = b'"' + b"x" * (MAX_ROW_BYTES - 2) + b'"'
    path = file_of(tmp_path, "a.json", before + largest + after)
    assert [row for _, row in raw_rows(path, "rows")] == [largest]
    path = file_of(tmp_path, "b.json", before + b" " * is_array + largest + b" " + after)
    assert [reason for _, reason in rows_of(path)] == ["oversized"]


def test_a_file_that_was_cut_within_a_character_is_cut_off(tmp_path: Path) -> None:
    path = file_of(tmp_path, "a.jsonl", '{"a": 1}\n{"a": "é'.encode()[:-1])
    assert rows_of(path) == [(1, {"a": 1}), (2, "cut_off")]


def test_a_broken_last_line_is_left_to_the_parser(tmp_path: Path) -> None:
    path = file_of(tmp_path, "a.jsonl", '{"a": 1}\n{"a": 1,}')
    assert [row for _, row in raw_rows(path, "rows")] == [b'{"a": 1}', b'{"a": 1,}']


def test_a_byte_order_mark_is_removed_at_the_start_of_any_line(tmp_path: Path) -> None:
    path = file_of(tmp_path, "a.jsonl", '\ufeff{}\n\ufeff\ufeff{"a": "\ufeff"}\n\ufeff\n')
    assert [row for _, row in raw_rows(path, "rows")] == [b"{}", '{"a": "\ufeff"}'.encode()]


def test_an_element_that_is_too_long_is_skipped_and_the_next_one_read(tmp_path: Path) -> None:
    huge = b'{"a":\n"' + b"x" * MAX_ROW_BYTES + b'"}'
    path = file_of(tmp_path, "a.json", b"[{},\n" + huge + b',\n{"b": 1}]')
    assert rows_of(path) == [(1, {}), (2, "oversized"), (4, {"b": 1})]
    [_, (_, row), _] = raw_rows(path, "rows")
    assert isinstance(row, BadRow)
    assert row.message == "rows:2: the row is longer than 16 MiB"


def test_utf_16_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="rows: is UTF-16") as caught:
        rows_of(file_of(tmp_path, "a.json", '{"a": 1}'.encode("utf-16")))
    assert caught.value.hint == "convert the file to UTF-8"
    with pytest.raises(DataError, match="rows: is UTF-16"):
        rows_of(file_of(tmp_path, "a.jsonl", '{"a": 1}'.encode("utf-16")))


@pytest.mark.parametrize(
    ("name", "content", "package", "what"),
    [
        ("a.zst", b"\x28\xb5\x2f\xfd", "zstandard", "zstandard"),
        ("a.parquet", b"PAR1", "pyarrow.parquet", "Parquet and Arrow"),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    content: bytes,
    package: str,
    what: str,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError) as caught:
        rows_of(file_of(tmp_path, name, content))
    message = f"rows: reading {what} needs the package {package.partition('.')[0]}"
    assert caught.value.message == message
    assert caught.value.hint == f"pip install {package.partition('.')[0]}"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('[{"a": 1}, {"a": 2}, x, {"a": 3}]', ["rows[0]", "rows[1]", "rows[2]", "rows[3]"]),
        ('[{"a": 1}, {"a": ', ["rows[0]", "rows[1]"]),
        ('[{"a": 1}, ] and more', ["rows[0]", "rows[1]", "rows[2]"]),
        ('[\n {"a": 1},\n {"a": 2}\n]\n', ["rows:2", "rows:3"]),
        ('{"a": 1}\n{"a": 2}\n', ["rows:1", "rows:2"]),
    ],
)
def test_rows_of_an_array_on_one_line_are_named_by_their_index(
    tmp_path: Path, text: str, names: list[str]
) -> None:
    found = [*raw_rows(file_of(tmp_path, "rows.json", text), "rows")]
    assert [str(source) for source, _ in found] == names
    for source, row in found:
        assert not isinstance(row, BadRow) or row.message.startswith(f"{source}: ")
