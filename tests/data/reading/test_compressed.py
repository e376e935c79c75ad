"""Rows of gzip and zstandard files, also of cut and damaged ones."""

import gzip
import json
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from sftctl.data.ledger import BadRow
from sftctl.data.reading.rows import MAX_ROW_BYTES, raw_rows
from tests.toys.data import file_of, rows_of

LINES = b"".join(b'{"a": "%d"}\n' % number for number in range(20_000))
EXPECTED = [(number + 1, {"a": str(number)}) for number in range(20_000)]


def zstandard_of(content: bytes) -> bytes:
    compressed: bytes = pytest.importorskip("zstandard").compress(content)
    return compressed


@pytest.mark.parametrize("compress", [gzip.compress, zstandard_of], ids=["gz", "zst"])
@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.json"])
def test_compression_is_recognized_by_content(
    tmp_path: Path, compress: Callable[[bytes], bytes], name: str
) -> None:
    path = file_of(
        tmp_path, name, compress(LINES[: len(LINES) // 2]) + compress(LINES[len(LINES) // 2 :])
    )
    assert rows_of(path) == EXPECTED


def test_a_compressed_array_is_read(tmp_path: Path) -> None:
    array = b"[" + LINES.replace(b"}\n", b"},\n").rstrip(b",\n") + b"]"
    assert rows_of(file_of(tmp_path, "a.json.gz", gzip.compress(array))) == EXPECTED


NOISE = [b'{"a": %d}' % random.Random(seed).getrandbits(90) for seed in range(30_000)]


@pytest.mark.parametrize("compress", [gzip.compress, zstandard_of], ids=["gz", "zst"])
def test_a_compressed_file_that_was_cut_keeps_the_rows_before(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    whole = compress(b"\n".join(NOISE))
    rows = rows_of(file_of(tmp_path, "cut.jsonl", whole[: len(whole) // 2]))
    assert 100 < len(rows) < len(NOISE)
    assert rows[-1] == (len(rows), "cut_off")
    expected = [(line, json.loads(row)) for line, row in enumerate(NOISE[: len(rows) - 1], start=1)]
    assert rows[:-1] == expected


def flushed_frame(rows: list[bytes]) -> tuple[bytes, list[int]]:
    """A .zst file in which every twentieth row ends a block; and the ends of its blocks."""
    zstandard = pytest.importorskip("zstandard")
    compressor, whole, ends = zstandard.ZstdCompressor().compressobj(), b"", []
    for start in range(0, len(rows), 20):
        whole += compressor.compress(b"\n".join(rows[start : start + 20]) + b"\n")
        whole += compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
        ends.append(len(whole))
    return whole + compressor.flush(), ends


def test_a_zstandard_file_that_was_cut_between_two_rows_is_cut_off(tmp_path: Path) -> None:
    whole, ends = flushed_frame(NOISE[:200])
    assert len(rows_of(file_of(tmp_path, "whole.jsonl", whole))) == 200
    rows = rows_of(file_of(tmp_path, "cut.jsonl", whole[: ends[4]]))
    assert len(rows) == 101 and rows[-1] == (101, "cut_off")
    assert rows_of(file_of(tmp_path, "head.jsonl", whole[:15])) == [(1, "cut_off")]


@pytest.mark.parametrize("compress", [gzip.compress, zstandard_of], ids=["gz", "zst"])
def test_a_damaged_compressed_file_ends_where_it_is_damaged(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    whole = compress(b"\n".join(NOISE))
    middle = len(whole) // 2
    damaged = whole[:middle] + bytes(500) + whole[middle + 500 :]
    *rows, (line, last) = raw_rows(file_of(tmp_path, "damaged.jsonl", damaged), "rows")
    assert isinstance(last, BadRow)
    assert (rows[-1][0].line + 1, last.reason) == (line.line, "cut_off")
    assert last.message.startswith(f"rows:{line.line}: the compressed data ends or is damaged here")
    assert [row for _, row in rows[:100]] == NOISE[:100]


def test_a_gzip_bomb_is_read_in_bounded_memory(tmp_path: Path) -> None:
    path = file_of(
        tmp_path, "a.jsonl.gz", gzip.compress(b"x" * (MAX_ROW_BYTES * 8) + b'\n{"a": 1}')
    )
    tracemalloc.start()
    assert rows_of(path) == [(1, "oversized"), (2, {"a": 1})]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MAX_ROW_BYTES * 3
