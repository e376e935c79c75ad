import hashlib
import io
import os
import threading
from pathlib import Path

import pytest

from sftctl.data.reading.sources import found_sources, require_input
from sftctl.errors import DataError


def names_of(*inputs):
    with found_sources([Path(item) for item in inputs]) as sources:
        return [source.name for source in sources]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Data files of every ending, and others that are none."""
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


def test_a_folder_means_every_data_file_below_it_but_no_store(folder):
    assert names_of("d") == IN_FOLDER


def test_several_inputs_follow_each_other_as_they_were_named(folder):
    assert names_of("d/b.jsonl", "d/sub", "d/a.json") == [
        "d/b.jsonl", "d/sub/c.jsonl.gz", "d/sub/e.json.zst", "d/a.json",
    ]  # fmt: skip


def test_a_pattern_means_the_files_that_match(folder):
    assert names_of("d/*.json*") == ["d/a.json", "d/b.jsonl"]
    assert names_of("d/**/*.gz") == ["d/sub/c.jsonl.gz"]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(folder):
    Path("d/[a].json").write_bytes(b"")
    assert names_of("d/[a].json") == ["d/[a].json"]


def test_a_source_is_hashed_by_content(folder):
    with found_sources([Path("d/a.json")]) as [source]:
        assert source.sha256 == hashlib.sha256(b"d/a.json").hexdigest()


def test_standard_input_is_kept_on_disk_while_it_is_needed(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"a": 1}')))
    with found_sources([Path("-")]) as [source]:
        assert source.name == "-"
        assert source.path.read_bytes() == b'{"a": 1}'
        assert source.sha256 == hashlib.sha256(b'{"a": 1}').hexdigest()
    assert not source.path.exists()


def test_a_pipe_is_read_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(b"{}",))
    writer.start()
    with found_sources([tmp_path / "pipe"]) as [source]:
        assert (source.name, source.path.read_bytes()) == (str(tmp_path / "pipe"), b"{}")
    writer.join()


@pytest.mark.parametrize(
    ("given", "message", "hint"),
    [
        (
            "none.jsonl",
            "none.jsonl: no such file or directory",
            "name a file, folder or pattern of conversations; train also takes a prepared store",
        ),
        (
            "none/*.jsonl",
            "none/*.jsonl: no file matches this pattern",
            "* stands for a part of one name, ** for folders below each other",
        ),
        ("empty", "empty: no data files in this folder", "known endings: .jsonl, .json, .parquet"),
        ("d/store", "d/store: is a token store", "name the conversations it was made from"),
    ],
)
def test_what_is_not_found_is_a_data_error(folder, given, message, hint):
    with pytest.raises(DataError) as caught:
        names_of(given)
    assert (caught.value.message, caught.value.hint) == (message, hint)


def test_a_name_that_means_nothing_is_refused_before_anything_is_read(folder):
    for fine in ("d", "d/a.json", "d/*.jsonl", "empty"):
        require_input(Path(fine))
    with pytest.raises(DataError, match="none: no such file or directory"):
        require_input(Path("none"))
    with pytest.raises(DataError, match=r"d/\*\.csv: no file matches this pattern"):
        require_input(Path("d/*.csv"))
