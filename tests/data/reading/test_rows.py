"""The rows of JSON lines, JSON arrays, compressed files and Parquet, each with its line."""

import gzip
import json
import random
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftctl.data.ledger import BadRow
from sftctl.data.reading.json_array import ArrayScanner
from sftctl.data.reading.rows import MAX_ROW_BYTES, raw_rows
from sftctl.errors import DataError


def rows_of(path: Path) -> list[tuple[int, Any]]:
    """(line, parsed row) or (line, reason)."""
    return [
        (source.line, row.reason if isinstance(row, BadRow) else json.loads(row))
        for source, row in raw_rows(path, "rows")
    ]


def written(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_json_lines_are_read_with_their_line_numbers(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", '\ufeff{"a": 1}\n\n  \r\n{"a": "é\u2028"}\r\n{"a": 3}')
    assert rows_of(path) == [(1, {"a": 1}), (4, {"a": "é\u2028"}), (5, {"a": 3})]


@pytest.mark.parametrize("indent", [None, 2])
def test_rows_of_a_json_array_have_the_line_on_which_they_begin(
    tmp_path: Path, indent: int | None
) -> None:
    values = [{"a": i, "b": {"text": "x\n，🤖"}} for i in range(5)]
    text = "\ufeff\n" + json.dumps(values, indent=indent, ensure_ascii=False)
    path = written(tmp_path, "a.json", text)
    lines = text.split("\n")
    for number, (line, row) in enumerate(rows_of(path)):
        assert row == values[number]
        assert "{" in lines[line - 1]
    expected = [2 + 1 + 6 * i for i in range(5)] if indent else [2] * 5
    assert [line for line, _ in rows_of(path)] == expected


def test_json_lines_may_be_called_json(tmp_path: Path) -> None:
    assert rows_of(written(tmp_path, "a.json", '{"a": 1}\n{"a": 2}\n')) == [
        (1, {"a": 1}),
        (2, {"a": 2}),
    ]


def test_an_array_may_be_called_json_lines(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", '[\n  {"a": 1},\n  {"a": 2}\n]\n')
    assert rows_of(path) == [(2, {"a": 1}), (3, {"a": 2})]


@pytest.mark.parametrize("content", ["", "\n \n", "\ufeff", "[ ]", "\n[\n]\n"])
@pytest.mark.parametrize("name", ["a.json", "b.json"])
def test_a_file_without_rows_has_none(tmp_path: Path, name: str, content: str) -> None:
    assert rows_of(written(tmp_path, name, content)) == []


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
    assert rows_of(written(tmp_path, name, content)) == expected


def test_a_cut_row_has_its_line_in_the_message(tmp_path: Path) -> None:
    path = written(tmp_path, "a.json", '[{"a": 1},\n{"a": "unfin')
    [_, (_, cut)] = raw_rows(path, "rows")
    assert isinstance(cut, BadRow)
    assert cut.message == "rows:2: the file ends within this row"
    assert cut.hint == "the rows before it are complete"


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text('"\\,[]{} \nab', max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('"\\x'), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(ANY_JSON, max_size=6), st.sampled_from([None, 0, 1]), st.integers(1, 40))
def test_elements_are_found_for_any_contents_and_any_chunk_size(
    values: list[Any], indent: int | None, size: int
) -> None:
    text = json.dumps(values, indent=indent).encode()[1:]
    scanner, ends = ArrayScanner(), []
    for start in range(0, len(text), size):
        if not scanner.is_closed:
            ends += [start + end for end in scanner.ends(text[start : start + size])]
    assert scanner.is_closed
    assert ends[-1] == len(text) - 1
    starts = [0, *(end + 1 for end in ends)]
    elements = [text[a:b] for a, b in zip(starts, ends, strict=False)]
    assert [json.loads(item) for item in elements if item.strip()] == values


@pytest.mark.parametrize("num_before", [2**20 - 2, 2**20 - 1])
def test_an_array_may_begin_at_the_end_of_a_chunk(tmp_path: Path, num_before: int) -> None:
    path = written(tmp_path, "a.json", b" " * num_before + b'[{"a": 1},\n{"a": 2}]')
    assert rows_of(path) == [(1, {"a": 1}), (2, {"a": 2})]


@pytest.mark.parametrize("size", [*range(1, 50), 1000])
def test_long_runs_of_backslashes_are_counted_across_chunks(size: int) -> None:
    values = ["\\" * count + '",' for count in (40, 41, 17, 1)]
    text = json.dumps(values).encode()[1:]
    scanner, ends = ArrayScanner(), []
    for start in range(0, len(text), size):
        ends += [start + end for end in scanner.ends(text[start : start + size])]
    assert [text[end : end + 1] for end in ends] == [b",", b",", b",", b"]"]
    assert (scanner.is_closed, ends[-1]) == (True, len(text) - 1)


def test_long_runs_of_backslashes_are_counted(tmp_path: Path) -> None:
    values = ["\\" * count + end for count in (1, 2, 15, 16, 17, 40, 41) for end in ('"', "", '",')]
    path = written(tmp_path, "a.json", json.dumps(values))
    assert rows_of(path) == [(1, value) for value in values]


@pytest.mark.parametrize("end", [b"\n", b""])
def test_a_line_that_is_too_long_is_skipped_and_the_next_one_read(
    tmp_path: Path, end: bytes
) -> None:
    huge = b'{"a": "' + b"x" * MAX_ROW_BYTES + b'"}'
    path = written(tmp_path, "a.jsonl", b"{}\n" + huge + b'\n{"b": 1}' + end)
    assert rows_of(path) == [(1, {}), (2, "oversized"), (3, {"b": 1})]


@pytest.mark.parametrize("is_array", [False, True])
def test_a_row_of_exactly_the_maximum_size_is_read(tmp_path: Path, is_array: bool) -> None:
    before, after = (b"[", b"]") if is_array else (b"", b"")
    largest = b'"' + b"x" * (MAX_ROW_BYTES - 2) + b'"'
    path = written(tmp_path, "a.json", before + largest + after)
    assert [row for _, row in raw_rows(path, "rows")] == [largest]
    path = written(tmp_path, "b.json", before + b" " * is_array + largest + b" " + after)
    assert [reason for _, reason in rows_of(path)] == ["oversized"]


def test_a_broken_last_line_is_for_the_parser_to_refuse(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", '{"a": 1}\n{"a": 1,}')
    assert [row for _, row in raw_rows(path, "rows")] == [b'{"a": 1}', b'{"a": 1,}']


def test_a_byte_order_mark_is_removed_only_at_the_beginning(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", "\ufeff{}\n\ufeff{}\n")
    assert [row for _, row in raw_rows(path, "rows")] == [b"{}", "\ufeff{}".encode()]


def test_an_element_that_is_too_long_is_skipped_and_the_next_one_read(tmp_path: Path) -> None:
    huge = b'{"a":\n"' + b"x" * MAX_ROW_BYTES + b'"}'
    path = written(tmp_path, "a.json", b"[{},\n" + huge + b',\n{"b": 1}]')
    assert rows_of(path) == [(1, {}), (2, "oversized"), (4, {"b": 1})]
    [_, (_, row), _] = raw_rows(path, "rows")
    assert isinstance(row, BadRow)
    assert row.message == "rows:2: the row is longer than 16 MiB"


LINES = b"".join(b'{"a": "%d"}\n' % number for number in range(20_000))
EXPECTED = [(number + 1, {"a": str(number)}) for number in range(20_000)]


def zstandard_of(content: bytes) -> bytes:
    return pytest.importorskip("zstandard").compress(content)


@pytest.mark.parametrize("compress", [gzip.compress, zstandard_of], ids=["gz", "zst"])
@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.json"])
def test_compression_is_recognized_by_content(
    tmp_path: Path, compress: Callable[[bytes], bytes], name: str
) -> None:
    path = written(
        tmp_path, name, compress(LINES[: len(LINES) // 2]) + compress(LINES[len(LINES) // 2 :])
    )
    assert rows_of(path) == EXPECTED


def test_a_compressed_array_is_read(tmp_path: Path) -> None:
    array = b"[" + LINES.replace(b"}\n", b"},\n").rstrip(b",\n") + b"]"
    assert rows_of(written(tmp_path, "a.json.gz", gzip.compress(array))) == EXPECTED


NOISE = [b'{"a": %d}' % random.Random(seed).getrandbits(90) for seed in range(30_000)]


@pytest.mark.parametrize("compress", [gzip.compress, zstandard_of], ids=["gz", "zst"])
def test_a_compressed_file_that_was_cut_keeps_the_rows_before(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    whole = compress(b"\n".join(NOISE))
    rows = rows_of(written(tmp_path, "cut.jsonl", whole[: len(whole) // 2]))
    assert 100 < len(rows) < len(NOISE)
    assert rows[-1] == (len(rows), "cut_off")
    expected = [(line, json.loads(row)) for line, row in enumerate(NOISE[: len(rows) - 1], start=1)]
    assert rows[:-1] == expected


def flushed_frame(rows: list[bytes]) -> tuple[bytes, list[int]]:
    """A .zst whose every twenty rows end a block; and where its blocks end."""
    zstandard = pytest.importorskip("zstandard")
    compressor, whole, ends = zstandard.ZstdCompressor().compressobj(), b"", []
    for start in range(0, len(rows), 20):
        whole += compressor.compress(b"\n".join(rows[start : start + 20]) + b"\n")
        whole += compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
        ends.append(len(whole))
    return whole + compressor.flush(), ends


def test_a_zstandard_file_that_was_cut_between_two_rows_is_cut_off(tmp_path: Path) -> None:
    whole, ends = flushed_frame(NOISE[:200])
    assert len(rows_of(written(tmp_path, "whole.jsonl", whole))) == 200
    rows = rows_of(written(tmp_path, "cut.jsonl", whole[: ends[4]]))
    assert len(rows) == 101 and rows[-1] == (101, "cut_off")
    assert rows_of(written(tmp_path, "head.jsonl", whole[:15])) == [(1, "cut_off")]


@pytest.mark.parametrize("compress", [gzip.compress, zstandard_of], ids=["gz", "zst"])
def test_a_damaged_compressed_file_ends_where_it_is_damaged(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    whole = compress(b"\n".join(NOISE))
    middle = len(whole) // 2
    damaged = whole[:middle] + bytes(500) + whole[middle + 500 :]
    *rows, (line, last) = raw_rows(written(tmp_path, "damaged.jsonl", damaged), "rows")
    assert isinstance(last, BadRow)
    assert (rows[-1][0].line + 1, last.reason) == (line.line, "cut_off")
    assert last.message.startswith(f"rows:{line.line}: the compressed data ends or is damaged here")
    assert [row for _, row in rows[:100]] == NOISE[:100]


def test_a_gzip_bomb_is_read_in_bounded_memory(tmp_path: Path) -> None:
    path = written(
        tmp_path, "a.jsonl.gz", gzip.compress(b"\0" * (MAX_ROW_BYTES * 8) + b'\n{"a": 1}')
    )
    tracemalloc.start()
    assert rows_of(path) == [(1, "oversized"), (2, {"a": 1})]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MAX_ROW_BYTES * 3


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
    written(tmp_path, "b.parquet", b"PAR1 and no more")
    with pytest.raises(DataError, match="rows: damaged Parquet: "):
        rows_of(tmp_path / "b.parquet")


@pytest.mark.parametrize(
    ("name", "content", "package", "what"),
    [
        ("a.zst", b"\x28\xb5\x2f\xfd", "zstandard", "zstandard"),
        ("a.parquet", b"PAR1", "pyarrow.parquet", "Parquet"),
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
        rows_of(written(tmp_path, name, content))
    message = f"rows: reading {what} needs the package {package.partition('.')[0]}"
    assert caught.value.message == message
    assert caught.value.hint == f"pip install {package.partition('.')[0]}"


def test_utf_16_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="rows: is UTF-16") as caught:
        rows_of(written(tmp_path, "a.json", '{"a": 1}'.encode("utf-16")))
    assert caught.value.hint == "convert the file to UTF-8"
    with pytest.raises(DataError, match="rows: is UTF-16"):
        rows_of(written(tmp_path, "a.jsonl", '{"a": 1}'.encode("utf-16")))
