import json
import multiprocessing
import os
from dataclasses import replace

import numpy as np
import pytest

from sftctl.config.schema import DataConfig
from sftctl.data.manifest import FORMAT_VERSION
from sftctl.data.prepare.fingerprint import PrepareOptions
from sftctl.data.prepare.prepare import prepare_store
from sftctl.data.store import TokenStore
from sftctl.errors import ConfigError, DataError
from tests.toys.data import CHATML, load, row, written

SETTINGS = DataConfig(max_seq_len=64)


@pytest.fixture
def rows(tmp_path):
    return written(tmp_path / "rows.jsonl", [row(f"Question {i}?") for i in range(40)])


@pytest.fixture
def store(tmp_path, chatml, rows):
    prepare_store([rows], tmp_path / "s", chatml, SETTINGS)
    return tmp_path / "s"


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_again_is_reused_and_not_touched(tmp_path, chatml, rows, store):
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
def test_another_setting_makes_it_anew_and_says_why(tmp_path, chatml, rows, store, change, why):
    settings = replace(SETTINGS, **change)
    made = prepare_store([rows], store, chatml, settings)
    assert not made.is_reused
    assert made.replaced.startswith(why)
    assert TokenStore.open(store).manifest == made.manifest
    assert prepare_store([rows], store, chatml, settings).is_reused
    assert sorted(os.listdir(tmp_path)) == ["rows.jsonl", "s"]


def test_other_rows_and_another_template_make_it_anew(tmp_path, chatml, rows, store):
    written(rows, [row("Other?")])
    assert prepare_store([rows], store, chatml, SETTINGS).replaced == "the inputs changed"
    rerendered = load(store / "tokenizer", "{# other #}" + CHATML)
    assert (
        prepare_store([rows], store, rerendered, SETTINGS).replaced == "the chat template changed"
    )
    assert len(TokenStore.open(store)) == 1


@pytest.mark.parametrize("name", ["train/tokens-00000.npy", "tokenizer/tokenizer.json"])
def test_a_store_whose_files_changed_is_made_anew(chatml, rows, store, name):
    before = (store / name).read_bytes()
    (store / name).write_bytes(before[:-3] + b"???")
    assert prepare_store([rows], store, chatml, SETTINGS).replaced == "its files were damaged"
    assert (store / name).read_bytes() == before


def test_a_store_of_another_version_is_made_anew(chatml, rows, store):
    manifest = json.loads((store / "manifest.json").read_text())
    manifest["format_version"] = FORMAT_VERSION + 1
    (store / "manifest.json").write_text(json.dumps(manifest))
    made = prepare_store([rows], store, chatml, SETTINGS)
    assert made.replaced == "the store there could not be read by this version"
    assert TokenStore.open(store).manifest == made.manifest


def test_a_failure_leaves_the_old_store_as_it_was(tmp_path, chatml, rows, store):
    before = contents(store)
    written(rows, [row("Fine?"), "{broken"])
    with pytest.raises(DataError, match=f"{rows}:2: broken JSON"):
        prepare_store([rows], store, chatml, SETTINGS, options=PrepareOptions(strict=True))
    assert contents(store) == before
    assert sorted(os.listdir(tmp_path)) == ["rows.jsonl", "s"]


def test_strict_does_not_reuse_a_store_with_a_ledger(chatml, rows, store):
    written(rows, [row("Fine?"), "{broken"])
    prepare_store([rows], store, chatml, SETTINGS)
    assert prepare_store([rows], store, chatml, SETTINGS).is_reused
    with pytest.raises(DataError, match=f"{rows}:2: broken JSON"):
        prepare_store([rows], store, chatml, SETTINGS, options=PrepareOptions(strict=True))


def test_what_is_no_store_is_never_replaced(tmp_path, chatml, rows, store):
    (tmp_path / "link").symlink_to(store)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/manifest.json").write_text("{}")
    for output in (tmp_path / "link", tmp_path / "folder", rows):
        with pytest.raises(ConfigError) as caught:
            prepare_store([rows], output, chatml, SETTINGS)
        assert caught.value.message == f"{output}: exists already, and is no token store"
        assert caught.value.hint == "name another output, or remove it first"
    (store / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError) as caught:
        prepare_store([rows], store, chatml, replace(SETTINGS, max_seq_len=32))
    assert caught.value.message == f"{store}: exists already, and holds notes.txt beside a store"
    (store / "notes.txt").rename(store / "train" / "notes.txt")
    with pytest.raises(ConfigError, match="holds train/notes.txt beside a store"):
        prepare_store([rows], store, chatml, SETTINGS)
    assert (store / "train" / "notes.txt").read_text() == "mine"


def _prepare_together(barrier, results, rows, output, max_seq_len):
    tokenizer = load(rows.parent / "tokenizer", CHATML)
    settings = replace(SETTINGS, max_seq_len=max_seq_len)

    def wait_for_the_other(*_):  # both are in the middle of it
        barrier.wait(60)

    results.put(prepare_store([rows], output, tokenizer, settings, on_progress=wait_for_the_other))


@pytest.mark.parametrize("exists", [False, True])
def test_two_processes_at_once_both_end_well_with_one_store(tmp_path, chatml, rows, exists):
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
    made = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert made[0].manifest == made[1].manifest == TokenStore.open(output).manifest
    assert prepare_store([rows], output, chatml, replace(SETTINGS, max_seq_len=32)).is_reused
    assert sorted(os.listdir(tmp_path)) == ["rows.jsonl", "s", "tokenizer"]


@pytest.mark.parametrize("wrong", [2**30, -1])
def test_a_token_beyond_the_vocabulary_is_told_when_it_is_read(store, wrong):
    path = store / "train/tokens-00000.npy"
    tokens = np.load(path)
    tokens[3] = wrong
    np.save(path, tokens)
    with pytest.raises(DataError) as caught:
        TokenStore.open(store)[0]
    size = load(store / "tokenizer").vocab_size
    what = f"{store}/train: damaged: example 0 holds what is no token of the vocabulary of {size}"
    assert (caught.value.message, caught.value.hint) == (what, "prepare the data anew")
