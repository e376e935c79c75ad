"""Which files the inputs name: files, folders, patterns, standard input and pipes."""

import hashlib
import io
import os
import threading
from pathlib import Path

import pytest

from sftctl.data.reading.sources import find_sources, require_input
from sftctl.errors import DataError


def names_of(*inputs: str) -> list[str]:
    with find_sources([Path(item) for item in inputs]) as sources:
        return [source.name for source in sources]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Data files with every ending, other files, a hidden one, and a token store."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "d/b.jsonl", "d/a.json", "d/sub/c.jsonl.gz", "d/sub/e.json.zst", "d/f.parquet",
        "d/README.md", "d/.hidden.jsonl", "d/.git/x.json",
        "d/store/manifest.json", "d/store/ledger.jsonl", "empty/none.txt",
    ):  # fmt: skip
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(name.encode())
    return tmp_path


IN_FOLDER = ["d/a.json", "d/b.jsonl", "d/f.parquet", "d/sub/c.jsonl.gz", "d/sub/e.json.zst"]


def test_a_folder_stands_for_every_data_file_below_it_except_stores(folder: Path) -> None:
    assert names_of("d") == IN_FOLDER


def test_several_inputs_keep_their_order(folder: Path) -> None:
    assert names_of("d/b.jsonl", "d/sub", "d/a.json") == [
        "d/b.jsonl", "d/sub/c.jsonl.gz", "d/sub/e.json.zst", "d/a.json",
    ]  # fmt: skip


def test_a_pattern_stands_for_the_files_that_match(folder: Path) -> None:
    assert names_of("d/*.json*") == ["d/a.json", "d/b.jsonl"]
    assert names_of("d/**/*.gz") == ["d/sub/c.jsonl.gz"]


def test_the_files_of_a_pattern_are_sorted_by_name(tmp_path: Path) -> None:
    names = [f"{number * 7919 % 1000:03d}.json" for number in range(100)]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    found = names_of(str(tmp_path / "*.json"))
    assert found == [str(tmp_path / name) for name in sorted(names)]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(folder: Path) -> None:
    Path("d/[a].json").write_bytes(b"")
    assert names_of("d/[a].json") == ["d/[a].json"]


def test_a_source_is_hashed_by_content(folder: Path) -> None:
    with find_sources([Path("d/a.json")]) as [source]:
        assert source.sha256 == hashlib.sha256(b"d/a.json").hexdigest()


def test_standard_input_is_kept_on_disk_while_it_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"a": 1}')))
    with find_sources([Path("-")]) as [source]:
        assert source.name == "-"
        assert source.path.read_bytes() == b'{"a": 1}'
        assert source.sha256 == hashlib.sha256(b'{"a": 1}').hexdigest()
    assert not source.path.exists()


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(b"{}",))
    writer.start()
    with find_sources([tmp_path / "pipe"]) as [source]:
        assert (source.name, source.path.read_bytes()) == (str(tmp_path / "pipe"), b"{}")
    writer.join()


def test_a_device_is_copied_because_it_may_be_read_only_once() -> None:
    with find_sources([Path("/dev/null")]) as [source]:
        assert source.path.is_file()
        assert (source.name, source.path.read_bytes()) == ("/dev/null", b"")


@pytest.mark.parametrize(
    ("given", "message", "hint"),
    [
        (
            "none.jsonl",
            "none.jsonl: no such file or directory",
            "name a file, folder or pattern of conversations; train also accepts a prepared store",
        ),
        (
            "none/*.jsonl",
            "none/*.jsonl: no file matches this pattern",
            "* matches any part of one name, ** any number of folders",
        ),
        (
            "empty",
            "empty: no data files in this folder",
            "known endings: .jsonl, .json, .ndjson, .jsonlines, .jl, .parquet, .pq, .arrow, "
            ".feather, .csv, .tsv, .tab, and .txt with --format text",
        ),
        (
            "d/store",
            "d/store: is a token store",
            "name the conversations that it was made from",
        ),
    ],
)
def test_an_input_without_files_is_a_data_error(
    folder: Path, given: str, message: str, hint: str
) -> None:
    with pytest.raises(DataError) as caught:
        names_of(given)
    assert (caught.value.message, caught.value.hint) == (message, hint)


def test_a_path_without_files_is_refused_before_anything_is_read(folder: Path) -> None:
    for fine in ("d", "d/a.json", "d/*.jsonl", "empty"):
        require_input(Path(fine))
    with pytest.raises(DataError, match="none: no such file or directory"):
        require_input(Path("none"))
    with pytest.raises(DataError, match=r"d/\*\.csv: no file matches this pattern"):
        require_input(Path("d/*.csv"))
