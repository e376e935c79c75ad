"""stored_rows: the conversations of a split, found again in the files it was made from."""

from pathlib import Path
from typing import Any

import pytest

from sftctl import jsonio
from sftctl.config.schema import DataConfig
from sftctl.data.prepare.prepare import prepare_store
from sftctl.data.prepare.stored_rows import stored_rows
from sftctl.data.store import TokenStore
from sftctl.errors import DataError
from tests.toys.data import CountingTokenizer


def row(question: str, *answers: str) -> dict[str, Any]:
    said = [{"role": "user", "content": question}]
    for answer in answers:
        said += [{"role": "assistant", "content": answer}, {"role": "user", "content": "More."}]
    return {"messages": said[:-1]}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_bytes(b"".join(map(jsonio.dump_line, rows)))
    return path


def asked(store: Path, split: str, given: Path | None, tokenizer: CountingTokenizer) -> list[str]:
    rows = stored_rows(TokenStore.open(store, split), str(given) if given else None, tokenizer)
    return [row.messages[0]["content"] for row in rows]


def test_each_split_finds_its_own_rows_in_order(tmp_path: Path, chatml: CountingTokenizer) -> None:
    """A row without a target is in no split, and one that was split has several examples."""
    rows = [row(f"Question {n}", *["word " * 9] * (n % 3 + 1)) for n in range(30)]
    rows.insert(7, {"messages": [{"role": "user", "content": "unanswered"}]})
    file, store = write(tmp_path / "a.jsonl", rows), tmp_path / "store"
    data = DataConfig(val_fraction=0.4, max_seq_len=40, overflow="split")
    manifest = prepare_store([file], store, chatml, data).manifest
    found = {split: asked(store, split, file, chatml) for split in ("train", "validation")}
    expected = [one["messages"][0]["content"] for one in rows if "unanswered" not in str(one)]
    assert manifest.rows_split and found["validation"] and found["train"]
    assert sorted(found["train"] + found["validation"]) == sorted(expected)
    assert found["train"] == [one for one in expected if one in found["train"]]
    assert asked(store, "validation", store, chatml) == found["validation"]  # by its manifest


def test_rows_of_validation_files_are_read_from_them(
    tmp_path: Path, chatml: CountingTokenizer
) -> None:
    train = write(tmp_path / "a.jsonl", [row(f"Train {n}", "a") for n in range(3)])
    held_out = write(tmp_path / "b.jsonl", [row(f"Held out {n}", "b") for n in range(3)])
    prepare_store([train], tmp_path / "store", chatml, DataConfig(), [held_out])
    train.rename(tmp_path / "c.jsonl")
    train.write_text("")  # it is not read
    found = asked(tmp_path / "store", "validation", tmp_path / "store", chatml)
    assert found == ["Held out 0", "Held out 1", "Held out 2"]


def test_a_file_that_is_gone_or_has_changed_is_named(
    tmp_path: Path, chatml: CountingTokenizer
) -> None:
    rows = [row(f"Question {n}", "a") for n in range(4)]
    file, store = write(tmp_path / "a.jsonl", rows), tmp_path / "store"
    prepare_store([file], store, chatml, DataConfig())
    rows[2] = row("Question 2", "another answer")
    write(file, rows)
    with pytest.raises(
        DataError, match="a.jsonl: changed since .* the row of example 2 was not found"
    ):
        asked(store, "train", store, chatml)
    file.unlink()
    with pytest.raises(DataError, match="a.jsonl: missing: .* was made from this file"):
        asked(store, "train", store, chatml)
