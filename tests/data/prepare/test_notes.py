"""What the manifest records per file, and what the screen says about it."""

import json
from pathlib import Path

import pytest

from sftctl.config.schema import DataConfig
from sftctl.data.prepare.fingerprint import PrepareOptions
from sftctl.data.prepare.notes import store_notes
from sftctl.data.prepare.prepare import prepare_store
from sftctl.errors import ConfigError, DataError
from sftctl.model.tokenizer.tokenizer import ChatTokenizer
from tests.toys.data import row, written

BAD = {"messages": [{"role": "robot", "content": "x"}]}


def test_each_file_has_its_rows_columns_and_reasons(tmp_path: Path, chatml: ChatTokenizer) -> None:
    (tmp_path / "d").mkdir()
    written(tmp_path / "d/a.jsonl", [row("Hi") | {"id": 1, "input": "x"}, BAD])
    written(tmp_path / "d/b.jsonl", [BAD, BAD])
    written(tmp_path / "d/test.jsonl", [row("Hi")])
    for name in ("part-00000", "config.json"):
        (tmp_path / "d" / name).write_bytes(b"{}")
    manifest = prepare_store([tmp_path / "d"], tmp_path / "s", chatml, DataConfig()).manifest
    a, b = manifest.sources
    assert (a.rows, a.rows_kept, a.rows_dropped) == (2, 1, {"bad_role": 1})
    assert (a.columns_used, a.columns_left) == (["input", "instruction", "output"], ["id"])
    assert (b.rows_kept, b.rows_dropped, b.columns_used) == (0, {"bad_role": 2}, [])
    notes = dict(store_notes(manifest))
    assert notes["no usable row"] == f"{tmp_path}/d/b.jsonl: bad_role 2 dropped"
    assert notes["not read"] == f"{tmp_path}/d/test.jsonl (validation or test data by its name)"
    others = f"{tmp_path}/d/config.json, {tmp_path}/d/part-00000"
    assert notes["other files"] == f"2 files are not data by name: {others}"


def test_validation_files_without_a_usable_row_are_an_error(
    tmp_path: Path, chatml: ChatTokenizer
) -> None:
    train = written(tmp_path / "train.jsonl", [row("Hi"), BAD])
    for rows in ([BAD], []):
        held_out = written(tmp_path / "held_out.jsonl", rows)
        with pytest.raises(DataError) as caught:
            prepare_store([train], tmp_path / "s", chatml, DataConfig(), [held_out])
        assert caught.value.message.startswith(f"{held_out}: no row")
        assert not (tmp_path / "s").exists()


def test_a_validation_fraction_that_draws_no_row_is_noted(
    tmp_path: Path, chatml: ChatTokenizer
) -> None:
    train = written(tmp_path / "train.jsonl", [row("Hi")])
    data = DataConfig(val_fraction=1e-9)
    manifest = prepare_store([train], tmp_path / "s", chatml, data).manifest
    assert "no row was drawn" in dict(store_notes(manifest))["validation"]


def test_a_mapped_column_that_no_row_has_is_an_error(tmp_path: Path, chatml: ChatTokenizer) -> None:
    train = written(tmp_path / "train.jsonl", [row("Hi")])
    data = DataConfig(columns="system=rules")
    with pytest.raises(ConfigError, match="system=rules: no row has a column rules"):
        prepare_store([train], tmp_path / "s", chatml, data)


def test_the_ledger_and_the_messages_have_the_index_of_a_row_of_an_array(
    tmp_path: Path, chatml: ChatTokenizer
) -> None:
    rows = [row("Hi"), BAD, row("Ho"), BAD]
    data = tmp_path / "rows.json"
    data.write_text(json.dumps(rows)[:-1] + ", {x}]")
    manifest = prepare_store([data], tmp_path / "s", chatml, DataConfig()).manifest
    lines = [json.loads(line) for line in (tmp_path / "s/ledger.jsonl").read_text().splitlines()]
    assert [(line["line"], line["row"]) for line in lines] == [(1, 1), (1, 3), (1, 4)]
    assert manifest.first_rows == {"bad_role": f"{data}[1]", "broken_json": f"{data}[4]"}
    with pytest.raises(DataError, match=r"rows.json\[1\]: unknown role 'robot'"):
        options = PrepareOptions(strict=True)
        prepare_store([data], tmp_path / "t", chatml, DataConfig(), options=options)
