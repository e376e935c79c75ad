"""Which files of a folder or a pattern are meant: data of the split, and no metadata."""

import json
from pathlib import Path

import pytest

from sftctl.data.reading.folders import TRAINING, Wanted
from sftctl.data.reading.sources import find_sources
from sftctl.errors import DataError


def found(tmp_path: Path, given: str, wanted: Wanted = TRAINING) -> tuple[list[str], list[str]]:
    """The files that are read, and those that are left out with the reason."""
    left_out: list[str] = []
    with find_sources([tmp_path / given], wanted, left_out) as sources:
        names = [str(source.path.relative_to(tmp_path)) for source in sources]
    return names, sorted(text.removeprefix(f"{tmp_path}/") for text in left_out)


def make(tmp_path: Path, *names: str) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"{}\n")


@pytest.mark.parametrize(
    "held_out",
    ["valid.jsonl", "validation.jsonl", "val.json", "dev.jsonl", "test.jsonl", "eval.csv"]
    + ["test-00000-of-00001.parquet", "alpaca_val.jsonl", "TEST.jsonl", "squad-validation.arrow"]
    + ["test/rows.jsonl", "data/validation/0.parquet", "dev2.jsonl", "x.test.jsonl.gz"]
    + ["chat.val.jsonl", "qa-eval-v2.jsonl", "held_out.jsonl", "hold-out.jl", "my_test_set.pq"],
)
def test_files_of_another_split_are_no_training_data_unless_they_are_named(
    tmp_path: Path, held_out: str
) -> None:
    make(tmp_path, "d/train.jsonl", "d/more.jsonl", f"d/{held_out}")
    names, left_out = found(tmp_path, "d")
    assert names == ["d/more.jsonl", "d/train.jsonl"]
    assert left_out == [f"d/{held_out} (validation or test data by its name)"]
    assert found(tmp_path, f"d/{held_out}") == ([f"d/{held_out}"], [])
    assert found(tmp_path, "d", Wanted(for_validation=True))[0] == sorted(
        ["d/more.jsonl", f"d/{held_out}"], key=lambda name: (name.count("/"), name)
    )


@pytest.mark.parametrize("name", ["a.jsonlines", "a.jl", "a.pq", "a.feather", "a.jl.gz", "A.PQ"])
def test_other_endings_of_known_formats_are_data(tmp_path: Path, name: str) -> None:
    make(tmp_path, f"d/{name}")
    assert found(tmp_path, "d") == ([f"d/{name}"], [])


@pytest.mark.parametrize(
    "name", ["contest.jsonl", "testament.json", "training_test.jsonl", "device.jsonl", "latest.csv"]
)
def test_words_that_only_contain_such_a_name_are_training_data(tmp_path: Path, name: str) -> None:
    make(tmp_path, f"d/{name}")
    assert found(tmp_path, "d") == ([f"d/{name}"], [])


def test_the_folder_that_is_named_may_have_any_name(tmp_path: Path) -> None:
    make(tmp_path, "test/a.jsonl", "test/sub/b.jsonl")
    assert found(tmp_path, "test") == (["test/a.jsonl", "test/sub/b.jsonl"], [])


def test_a_folder_of_held_out_files_alone_is_an_error(tmp_path: Path) -> None:
    make(tmp_path, "d/valid.jsonl", "d/test.jsonl")
    with pytest.raises(DataError, match="by their names, all files are validation or test data"):
        found(tmp_path, "d")
    assert found(tmp_path, "d", Wanted(for_validation=True))[0] == ["d/test.jsonl", "d/valid.jsonl"]


def test_a_pattern_leaves_out_other_splits_unless_it_names_them(tmp_path: Path) -> None:
    make(tmp_path, "d/train.jsonl", "d/valid.jsonl", "d/state.json")
    assert found(tmp_path, "d/*.jsonl")[0] == ["d/train.jsonl"]
    assert found(tmp_path, "d/valid*")[0] == ["d/valid.jsonl"]
    assert found(tmp_path, "d/*")[0] == ["d/train.jsonl"]


@pytest.mark.parametrize(
    "name", ["dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"]
    + ["config.json", "tokenizer.json", "cache-0a1b.arrow", "README.md", "notes.txt", "a.lock"],
)  # fmt: skip
def test_metadata_is_never_data(tmp_path: Path, name: str) -> None:
    make(tmp_path, "d/rows.jsonl", f"d/{name}")
    names, left_out = found(tmp_path, "d")
    assert names == ["d/rows.jsonl"]
    assert [text.partition(" ")[0] for text in left_out] == [f"d/{name}"]


def test_text_is_data_if_it_is_asked_for(tmp_path: Path) -> None:
    make(tmp_path, "d/a.txt", "d/b.jsonl")
    assert found(tmp_path, "d", Wanted(format="text"))[0] == ["d/a.txt", "d/b.jsonl"]


def save(folder: Path, files: list[str], **more: object) -> None:
    make(folder, *files)
    state = {"_data_files": [{"filename": name} for name in files], **more}
    (folder / "state.json").write_text(json.dumps(state))


def test_a_folder_of_save_to_disk_is_read_in_the_order_of_its_rows(tmp_path: Path) -> None:
    save(tmp_path / "d/train", ["b.arrow", "a.arrow"])
    save(tmp_path / "d/test", ["c.arrow"])
    make(tmp_path, "d/dataset_dict.json", "d/train/cache-1.arrow", "d/train/dataset_info.json")
    assert found(tmp_path, "d")[0] == ["d/train/b.arrow", "d/train/a.arrow"]


def test_a_saved_folder_that_would_give_other_rows_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "d", ["a.arrow"], _indices_data_files=[{"filename": "indices.arrow"}])
    with pytest.raises(DataError, match="saved with an index"):
        found(tmp_path, "d")
    save(tmp_path / "e", ["a.arrow"])
    (tmp_path / "e/a.arrow").unlink()
    with pytest.raises(DataError, match=r"a\.arrow: missing"):
        found(tmp_path, "e")
