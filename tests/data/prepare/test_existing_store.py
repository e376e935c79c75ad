"""A store that is already at the output: reused, replaced, or left alone."""

import json
import multiprocessing
import os
from dataclasses import replace
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sftctl.config.schema import DataConfig
from sftctl.data.manifest import FORMAT_VERSION
from sftctl.data.prepare.builder import Progress
from sftctl.data.prepare.existing_store import make_way
from sftctl.data.prepare.fingerprint import PrepareOptions
from sftctl.data.prepare.prepare import PreparedStore, prepare_store
from sftctl.data.store import TokenStore
from sftctl.errors import ConfigError, DataError
from sftctl.model.tokenizer.tokenizer import ChatTokenizer
from tests.toys.data import CHATML, load, row, written

SETTINGS = DataConfig(max_seq_len=64)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return written(tmp_path / "rows.jsonl", [row(f"Question {i}?") for i in range(40)])


@pytest.fixture
def store(tmp_path: Path, chatml: ChatTokenizer, rows: Path) -> Path:
    prepare_store([rows], tmp_path / "s", chatml, SETTINGS)
    return tmp_path / "s"


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_store_of_the_same_inputs_is_reused_unchanged(
    tmp_path: Path, chatml: ChatTokenizer, rows: Path, store: Path
) -> None:
    identity = store.stat().st_ino
    again = prepare_store([rows.rename(tmp_path / "moved.jsonl")], store, chatml, SETTINGS)
    assert again.is_reused
    assert again.manifest == TokenStore.open(store).manifest
    assert store.stat().st_ino == identity


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"max_seq_len": 32}, "max_seq_len 64 → 32"),
        ({"overflow": "drop", "train_on": "last"}, "overflow truncate → drop; train_on assistant"),
        ({"val_fraction": 0.5}, "val_fraction 0.0 → 0.5"),
        ({"format": "alpaca"}, "format auto → alpaca"),
    ],
)
def test_another_setting_makes_a_new_store_and_says_why(
    tmp_path: Path, chatml: ChatTokenizer, rows: Path, store: Path, change: dict[str, Any], why: str
) -> None:
    settings = replace(SETTINGS, **change)
    made = prepare_store([rows], store, chatml, settings)
    assert not made.is_reused
    assert str(made.replaced).startswith(why)
    assert TokenStore.open(store).manifest == made.manifest
    assert prepare_store([rows], store, chatml, settings).is_reused
    assert sorted(os.listdir(tmp_path)) == ["rows.jsonl", "s"]


def test_other_rows_and_another_template_make_a_new_store(
    tmp_path: Path, chatml: ChatTokenizer, rows: Path, store: Path
) -> None:
    written(rows, [row("Other?")])
    assert prepare_store([rows], store, chatml, SETTINGS).replaced == "the inputs changed"
    rerendered = load(store / "tokenizer", "{# other #}" + CHATML)
    assert (
        prepare_store([rows], store, rerendered, SETTINGS).replaced == "the chat template changed"
    )
    assert len(TokenStore.open(store)) == 1


@pytest.mark.parametrize("name", ["train/tokens-00000.npy", "tokenizer/tokenizer.json"])
def test_a_store_with_changed_files_is_made_again(
    chatml: ChatTokenizer, rows: Path, store: Path, name: str
) -> None:
    before = (store / name).read_bytes()
    (store / name).write_bytes(before[:-3] + b"???")
    assert prepare_store([rows], store, chatml, SETTINGS).replaced == "the old store was damaged"
    assert (store / name).read_bytes() == before


def test_a_store_of_another_version_is_made_again(
    chatml: ChatTokenizer, rows: Path, store: Path
) -> None:
    manifest = json.loads((store / "manifest.json").read_text())
    manifest["format_version"] = FORMAT_VERSION + 1
    (store / "manifest.json").write_text(json.dumps(manifest))
    made = prepare_store([rows], store, chatml, SETTINGS)
    assert made.replaced == "this version can't read the old store"
    assert TokenStore.open(store).manifest == made.manifest


def test_a_failure_leaves_the_old_store_as_it_was(
    tmp_path: Path, chatml: ChatTokenizer, rows: Path, store: Path
) -> None:
    before = contents(store)
    written(rows, [row("Fine?"), "{broken"])
    with pytest.raises(DataError, match=f"{rows}:2: broken JSON"):
        prepare_store([rows], store, chatml, SETTINGS, options=PrepareOptions(strict=True))
    assert contents(store) == before
    assert sorted(os.listdir(tmp_path)) == ["rows.jsonl", "s"]


def test_strict_does_not_reuse_a_store_with_a_ledger(
    chatml: ChatTokenizer, rows: Path, store: Path
) -> None:
    written(rows, [row("Fine?"), "{broken"])
    prepare_store([rows], store, chatml, SETTINGS)
    assert prepare_store([rows], store, chatml, SETTINGS).is_reused
    with pytest.raises(DataError, match=f"{rows}:2: broken JSON"):
        prepare_store([rows], store, chatml, SETTINGS, options=PrepareOptions(strict=True))


def test_anything_that_is_not_a_store_is_never_replaced(
    tmp_path: Path, chatml: ChatTokenizer, rows: Path, store: Path
) -> None:
    (tmp_path / "link").symlink_to(store)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/manifest.json").write_text("{}")
    for output in (tmp_path / "link", tmp_path / "dangling", tmp_path / "folder", rows):
        with pytest.raises(ConfigError) as caught:
            prepare_store([rows], output, chatml, SETTINGS)
        assert caught.value.message == f"{output}: exists already, and is not a token store"
        assert caught.value.hint == "name another output, or remove it first"
    (store / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError) as caught:
        prepare_store([rows], store, chatml, replace(SETTINGS, max_seq_len=32))
    assert (
        caught.value.message
        == f"{store}: exists already, and notes.txt in it is not part of a store"
    )
    (store / "notes.txt").rename(store / "train" / "notes.txt")
    with pytest.raises(ConfigError, match="train/notes.txt in it is not part of a store"):
        prepare_store([rows], store, chatml, SETTINGS)
    assert (store / "train" / "notes.txt").read_text() == "mine"


def test_a_foreign_folder_that_appears_at_the_output_survives(
    tmp_path: Path, chatml: ChatTokenizer, rows: Path
) -> None:
    output = tmp_path / "s"

    def make_a_folder(progress: Progress) -> None:  # a slow process calls it more than once
        output.mkdir(exist_ok=True)
        (output / "notes.txt").write_text("mine")

    with pytest.raises(DataError, match="can't be written: something else created it meanwhile"):
        prepare_store([rows], output, chatml, SETTINGS, on_progress=make_a_folder)
    assert (output / "notes.txt").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["rows.jsonl", "s"]


def test_only_another_store_is_removed_from_the_output(tmp_path: Path, store: Path) -> None:
    fingerprint = TokenStore.open(store).manifest.fingerprint
    make_way(store, fingerprint)
    assert store.exists()
    make_way(tmp_path / "nothing", fingerprint)
    make_way(store, "0" * 64)
    assert not store.exists()


def _prepare_together(
    barrier: Barrier, results: "Queue[PreparedStore]", rows: Path, output: Path, max_seq_len: int
) -> None:
    tokenizer = load(rows.parent / "tokenizer", CHATML)
    settings = replace(SETTINGS, max_seq_len=max_seq_len)

    barriers = [barrier]

    def wait_for_the_other(progress: Progress) -> None:
        while barriers:  # once: a slow process calls this more often
            barriers.pop().wait(300)  # both are preparing now

    results.put(prepare_store([rows], output, tokenizer, settings, on_progress=wait_for_the_other))


@pytest.mark.parametrize("exists", [False, True])
def test_two_processes_at_once_both_succeed_with_one_store(
    tmp_path: Path, chatml: ChatTokenizer, rows: Path, exists: bool
) -> None:
    chatml.save(tmp_path / "tokenizer")
    output = tmp_path / "s"
    if exists:
        prepare_store([rows], output, chatml, SETTINGS)
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()
    arguments = (barrier, results, rows, output, 32)
    processes = [context.Process(target=_prepare_together, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    made = [results.get(timeout=300) for _ in processes]
    for process in processes:
        process.join(300)
        assert process.exitcode == 0
    assert made[0].manifest == made[1].manifest == TokenStore.open(output).manifest
    assert prepare_store([rows], output, chatml, replace(SETTINGS, max_seq_len=32)).is_reused
    assert sorted(os.listdir(tmp_path)) == ["rows.jsonl", "s", "tokenizer"]


def test_a_damaged_tokenizer_is_an_error_when_it_is_loaded(store: Path) -> None:
    (store / "tokenizer/tokenizer.json").write_text("{")
    with pytest.raises(DataError, match=f"{store}: damaged: tokenizer .* can't be loaded"):
        TokenStore.open(store).load_tokenizer()


@pytest.mark.parametrize("wrong", [2**30, -1])
def test_a_token_id_outside_the_vocabulary_is_an_error_when_it_is_read(
    store: Path, wrong: int
) -> None:
    path = store / "train/tokens-00000.npy"
    tokens = np.load(path)
    tokens[3] = wrong
    np.save(path, tokens)
    with pytest.raises(DataError) as caught:
        TokenStore.open(store)[0]
    size = load(store / "tokenizer").vocab_size
    what = f"{store}/train: damaged: example 0 holds a token id outside the vocabulary of {size}"
    assert (caught.value.message, caught.value.hint) == (what, "prepare the data again")
