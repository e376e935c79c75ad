"""TokenStore: it reads back what was written, and refuses damaged files."""

import gc
import json
import os
import pickle
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sftctl.data.example import ExampleArrays, TokenizedExample
from sftctl.data.manifest import FORMAT_VERSION, Audit, SourceEntry, SplitCounts, StoreManifest
from sftctl.data.store import JoinedRows, TokenStore, TokenStoreWriter
from sftctl.errors import DataError
from sftctl.jsonio import dump_pretty


def example(length: int, seed: int) -> TokenizedExample:
    rng = np.random.default_rng(seed)
    return TokenizedExample(rng.integers(0, 99, length, dtype=np.int32), rng.random(length) < 0.5)


EXAMPLES = [example(length, seed) for seed, length in enumerate([3, 5, 2, 40, 1, 6, 4])]


def manifest_of(splits: dict[str, SplitCounts]) -> StoreManifest:
    train, validation = splits["train"], splits["validation"]
    return StoreManifest(
        format_version=FORMAT_VERSION,
        fingerprint="f" * 64,
        tokenizer="toy",
        tokenizer_hash="t" * 64,
        vocab_size=99,
        template_hash="c" * 64,
        engine="tokenizers",
        engine_reason="a toy",
        engine_rows_checked=0,
        max_seq_len=64,
        overflow="truncate",
        train_on="assistant",
        format="auto",
        val_fraction=0.0,
        sources=[SourceEntry("a.jsonl", "s" * 64, 7, {"messages": 7})],
        rows_read=7,
        rows_kept=7,
        rows_dropped={},
        rows_truncated=0,
        rows_split=0,
        rows_duplicated=0,
        tokens_lost={},
        num_examples=train.num_examples,
        num_validation_examples=validation.num_examples,
        num_tokens=train.num_tokens,
        num_target_tokens=train.num_target_tokens,
        length_quantiles={"max": 40},
        splits=splits,
        audit=Audit(),
        files={},
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of seven examples in shards of at most ten tokens, one of them longer."""
    path = tmp_path / "store"
    path.mkdir()
    train, validation = (
        TokenStoreWriter(path / name, shard_tokens=10) for name in ("train", "validation")
    )
    for item in EXAMPLES:
        train.extend(ExampleArrays.pack([item]))
    splits = {"train": train.close(), "validation": validation.close()}
    (path / "manifest.json").write_bytes(dump_pretty(manifest_of(splits)))
    return path


def assert_holds_the_examples(store: TokenStore) -> None:
    assert len(store) == len(EXAMPLES)
    for stored, original in zip((store[i] for i in range(len(store))), EXAMPLES, strict=True):
        assert stored.input_ids.dtype == np.int32
        assert stored.loss_mask.dtype == np.bool_
        np.testing.assert_array_equal(stored.input_ids, original.input_ids)
        np.testing.assert_array_equal(stored.loss_mask, original.loss_mask)


def test_a_store_gives_back_what_was_written(path: Path) -> None:
    store = TokenStore.open(path)
    assert_holds_the_examples(store)
    assert store.lengths.tolist() == [3, 5, 2, 40, 1, 6, 4]
    assert store.target_lengths.tolist() == [item.num_target_tokens for item in EXAMPLES]
    assert store.manifest.splits["train"] == SplitCounts(7, 61, int(store.target_lengths.sum()))
    assert store.manifest.sources == [SourceEntry("a.jsonl", "s" * 64, 7, {"messages": 7})]


def test_an_example_is_never_cut_by_the_end_of_a_shard(path: Path) -> None:
    sizes = [len(np.load(shard)) for shard in sorted(path.glob("train/tokens-*.npy"))]
    assert sizes == [10, 40, 7, 4]


def test_weights_are_stored_only_in_the_shards_that_have_some(tmp_path: Path) -> None:
    weights = np.linspace(0, 2, 5, dtype=np.float32)
    weighted = TokenizedExample(np.arange(5, dtype=np.int32), weights > 0, weights)
    items = [*EXAMPLES[:1], weighted, *EXAMPLES[3:]]
    (path := tmp_path / "store").mkdir()
    train, validation = (
        TokenStoreWriter(path / name, shard_tokens=10) for name in ("train", "validation")
    )
    for item in items:
        train.extend(ExampleArrays.pack([item]))
    splits = {"train": train.close(), "validation": validation.close()}
    (path / "manifest.json").write_bytes(dump_pretty(manifest_of(splits)))
    names = {file.name for file in (path / "train").glob("*weights*")}
    assert names == {"loss_weights-00000.npy", "target_weights.npy"}
    assert not list((path / "validation").glob("*weights*"))
    store = TokenStore.open(path)
    np.testing.assert_array_equal(store[1].loss_weights, weights)
    assert store[2].loss_weights is None
    assert store.target_weights is not None
    expected = [items[0].num_target_tokens, 5.0, items[2].num_target_tokens]
    assert store.target_weights[:3].tolist() == expected
    rows = store.read([2, 1])
    ones = items[2].loss_mask.astype(np.float32)
    np.testing.assert_array_equal(rows.loss_weights, np.concatenate([ones, weights]))
    np.save(path / "train/target_weights.npy", np.ones(3))
    refuses(path, f"{path}/train/target_weights.npy: does not match the manifest")


def test_a_split_may_be_empty(path: Path) -> None:
    store = TokenStore.open(str(path), "validation")
    assert len(store) == 0
    assert store.lengths.tolist() == []


def test_several_examples_are_read_at_once_in_any_order(path: Path) -> None:
    found = TokenStore.open(path).read([3, 0, 0, 6])
    expected = ExampleArrays.pack([EXAMPLES[index] for index in (3, 0, 0, 6)])
    for name in JoinedRows._fields:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_only_some_shards_are_open_and_all_can_be_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sftctl.data.store.MAX_OPEN_SHARDS", 2)
    gc.collect()  # what other tests left open
    before = len(os.listdir("/proc/self/fd"))
    store = TokenStore.open(path)
    for _ in range(3):
        assert_holds_the_examples(store)
        assert len(os.listdir("/proc/self/fd")) == before + 4
    del store
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("name", ["tokens-00001.npy", "loss_mask-00001.npy"])
@pytest.mark.parametrize("num_shards", [1, 32])
def test_a_file_that_becomes_shorter_is_one_error(
    path: Path, monkeypatch: pytest.MonkeyPatch, name: str, num_shards: int
) -> None:
    """Mapped, it would kill the process with SIGBUS."""
    monkeypatch.setattr("sftctl.data.store.MAX_OPEN_SHARDS", num_shards)
    store = TokenStore.open(path)
    os.truncate(path / "train" / name, 140)
    assert store[0].num_tokens == 3
    with pytest.raises(DataError, match=f"{name}: became shorter while it was used") as raised:
        store[3]
    assert raised.value.exit_code == 3


def test_an_index_beyond_the_end_ends_a_loop(path: Path) -> None:
    store = TokenStore.open(path)
    assert len(list(iter(store))) == 7
    for index in (7, -1):
        with pytest.raises(IndexError, match=f"example {index} of 7"):
            store[index]


def test_a_pickled_store_holds_no_arrays_and_opens_again(path: Path) -> None:
    pickled = pickle.dumps(TokenStore.open(path))
    assert len(pickled) < 2000
    assert_holds_the_examples(pickle.loads(pickled))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_another_process_reads_the_same(path: Path, method: str) -> None:
    with get_context(method).Pool(1) as pool:
        [tokens] = pool.map(TokenStore.open(path).__getitem__, [3])
    np.testing.assert_array_equal(tokens.input_ids, EXAMPLES[3].input_ids)


def refuses(path: Path, message: str, split: str = "train") -> None:
    with pytest.raises(DataError) as caught:
        TokenStore.open(path, split)
    assert caught.value.message.startswith(message)


def test_a_folder_that_is_not_a_store_is_refused(tmp_path: Path) -> None:
    refuses(tmp_path / "none", f"{tmp_path}/none: not a token store")
    refuses(tmp_path, f"{tmp_path}: not a token store")


def test_an_unknown_split_is_refused(path: Path) -> None:
    refuses(path, f"{path}: no split 'test'", "test")


def rewrite(path: Path, **changes: Any) -> None:
    values = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(values | changes))


def test_a_newer_format_is_refused_and_an_older_one_too(path: Path) -> None:
    newer = FORMAT_VERSION + 1
    rewrite(path, format_version=newer, novelty=True)
    what = f"format version {newer} is newer than this sftctl's {FORMAT_VERSION}"
    refuses(path, f"{path}/manifest.json: {what}")
    rewrite(path, format_version=1)
    refuses(path, f"{path}/manifest.json: format version 1 is no longer supported")


def test_a_damaged_manifest_is_refused(path: Path) -> None:
    manifest = path / "manifest.json"
    damages: list[dict[str, Any]]
    damages = [{"novelty": 1}, {"splits": {}}, {"sources": [1]}, {"splits": {"train": []}}]
    for changes in damages:
        original = manifest.read_bytes()
        rewrite(path, **changes)
        refuses(path, f"{manifest}: damaged manifest: ")
        manifest.write_bytes(original)
    manifest.write_bytes(manifest.read_bytes()[:50])
    refuses(path, f"{manifest}:")


@pytest.mark.parametrize(
    "name", ["lengths", "target_lengths", "offsets", "tokens-00001", "loss_mask-00001"]
)
def test_a_missing_or_damaged_array_is_refused(path: Path, name: str) -> None:
    file = path / "train" / f"{name}.npy"
    original = file.read_bytes()
    where = f"{path}/train/{name.partition('-')[0]}"
    file.unlink()
    refuses(path, where)
    for damaged in (b"", original[:-1], original[:20], b"junk" + original):
        file.write_bytes(damaged)
        refuses(path, f"{file}: damaged: ")
    np.save(file, np.zeros(3, np.int16))
    refuses(path, f"{file}: damaged: holds int16 of shape ")


@pytest.mark.parametrize(
    ("name", "values", "where"),
    [
        ("lengths", np.ones(6, np.int32), "lengths.npy"),
        ("target_lengths", np.ones(7, np.int32), "target_lengths.npy"),
        ("offsets", np.arange(8), "offsets.npy"),
        ("tokens-00001", np.ones(39, np.int32), "tokens-*.npy"),
        ("loss_mask-00001", np.ones(39, np.bool_), "loss_mask-*.npy"),
    ],
)
def test_arrays_that_do_not_match_each_other_are_refused(
    path: Path, name: str, values: np.ndarray, where: str
) -> None:
    np.save(path / "train" / f"{name}.npy", values)
    refuses(path, f"{path}/train/{where}: does not match the manifest")
