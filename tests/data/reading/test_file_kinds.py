"""Files that hold no rows are recognized by their content; the hint says what to do."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import tarfile
import zipfile
from pathlib import Path

import pytest

from sftctl.errors import DataError
from tests.toys.data import file_of, rows_of

ROW = b'{"prompt": "a", "completion": "b"}\n'


def zipped() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("rows.jsonl", ROW)
    return content.getvalue()


def tarred(mode: str = "w") -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=mode) as archive:  # type: ignore[call-overload]
        info = tarfile.TarInfo("rows.jsonl")
        info.size = len(ROW)
        archive.addfile(info, io.BytesIO(ROW))
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (zipped(), "a zip archive"),
        (tarred(), "a tar archive"),
        (tarred("w:gz"), "a tar archive"),
        (lzma.compress(ROW), "compressed by xz"),
        (bz2.compress(ROW), "compressed by bzip2"),
        (pickle.dumps([1]), "a pickle"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"SQLite format 3\0", "an SQLite database"),
        (b"%PDF-1.7", "a PDF document"),
        (ROW.decode().encode("utf-16-le"), "UTF-16"),
        (ROW.decode().encode("utf-16-be"), "UTF-16"),
        (b"[".decode().encode("utf-16"), "UTF-16"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a"])
def test_another_kind_of_file_is_named(
    tmp_path: Path, content: bytes, what: str, name: str
) -> None:
    with pytest.raises(DataError) as caught:
        rows_of(file_of(tmp_path, name, content))
    assert caught.value.message.startswith(f"rows: is {what}")
    assert caught.value.hint


@pytest.mark.parametrize(
    "content",
    ["The Elbe is a river.\nIt flows to the sea.\n", "one word", "# Title\n\ntext, more\n"],
)
def test_text_is_named_with_the_option_that_reads_it(tmp_path: Path, content: str) -> None:
    for pack in (bytes, gzip.compress):
        with pytest.raises(DataError, match="rows: is text, not JSON") as caught:
            rows_of(file_of(tmp_path, "a.txt", pack(content.encode())))
        assert caught.value.hint is not None
        assert "--format text" in caught.value.hint


@pytest.mark.parametrize(
    ("value", "keys", "command"),
    [
        ({"data": [{"prompt": "a"}], "version": 1}, "data, version", "jq -c '.data[]'"),
        ({"prompt": "a", "completion": "b"}, "prompt, completion", "jq -c ."),
        ({"rows": {"a": [1]}}, "rows", "jq -c ."),
    ],
)
@pytest.mark.parametrize("count", [1, 3])
def test_an_object_over_several_lines_is_refused_with_its_keys(
    tmp_path: Path, value: object, keys: str, command: str, count: int
) -> None:
    text = f"\ufeff{json.dumps(value, indent=2)}\n" * count
    with pytest.raises(DataError) as caught:
        rows_of(file_of(tmp_path, "a.json", text.removeprefix("\ufeff") if count > 1 else text))
    assert caught.value.message == f"rows: a JSON object over several lines, with keys: {keys}"
    assert caught.value.hint is not None
    assert command in caught.value.hint


def test_a_cut_object_over_several_lines_is_refused_with_its_first_key(tmp_path: Path) -> None:
    text = json.dumps({"data": [{"prompt": "a"}] * 9}, indent=1)[:60]
    with pytest.raises(DataError, match="over several lines, with keys: data"):
        rows_of(file_of(tmp_path, "a.json", text))


def test_a_broken_first_row_costs_only_itself(tmp_path: Path) -> None:
    path = file_of(tmp_path, "a.jsonl", b'{"prompt": \n' + ROW)
    assert [line for line, _ in rows_of_json(path)] == [2]
    path = file_of(tmp_path, "b.jsonl", b'{"score": NaN}\n' + ROW)
    assert [line for line, _ in rows_of_json(path)] == [2]


def rows_of_json(path: Path) -> list[tuple[int, object]]:
    """The rows that are JSON, with their lines."""
    from sftctl.data.reading.rows import raw_rows

    found: list[tuple[int, object]] = []
    for source, raw in raw_rows(path, "rows"):
        if isinstance(raw, bytes) and raw.strip() == ROW.strip():
            found.append((source.line, raw))
    return found
