"""prepare_store: rows become examples on disk, and every row is counted."""

import gzip
import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sftctl.config.schema import DataConfig
from sftctl.data.manifest import SPLITS
from sftctl.data.prepare.builder import Progress
from sftctl.data.prepare.fingerprint import PrepareOptions
from sftctl.data.prepare.prepare import prepare_store
from sftctl.data.sample import SAMPLE_TOKENIZER
from sftctl.data.store import TokenStore
from sftctl.errors import ConfigError, DataError
from sftctl.model.tokenizer.encoders import Ids, Splintr
from sftctl.model.tokenizer.tokenizer import ChatTokenizer, load_tokenizer
from tests.toys.data import CHATML, load, row, written
from tests.toys.first_sample import TRAIN, VALIDATION

SETTINGS = DataConfig(max_seq_len=64)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return written(tmp_path / "rows.jsonl", [row(f"Question {i}?") for i in range(200)])


def texts_of(path: Path, split: str, tokenizer: ChatTokenizer) -> list[str]:
    store = TokenStore.open(path, split)
    return [tokenizer.decode(store[i].input_ids) for i in range(len(store))]


def test_many_conversations_become_a_store_that_reads_back_as_text(
    tmp_path: Path, chatml: ChatTokenizer
) -> None:
    train, validation = TRAIN, VALIDATION
    made = prepare_store([train], tmp_path / "s", chatml, DataConfig(), [validation])
    manifest = made.manifest
    for split, path in (("train", train), ("validation", validation)):
        messages = [json.loads(line)["messages"] for line in path.read_text("utf-8").splitlines()]
        expected = [chatml.render(turns, None, False) for turns in messages]
        assert texts_of(tmp_path / "s", split, chatml) == expected
    assert [source.rows for source in manifest.sources] == [
        manifest.num_examples,
        manifest.num_validation_examples,
    ]


def test_the_manifest_on_disk_counts_what_the_store_holds(
    tmp_path: Path, chatml: ChatTokenizer, rows: Path
) -> None:
    made = prepare_store([rows], tmp_path / "s", chatml, replace(SETTINGS, val_fraction=0.2))
    store, validation = (
        TokenStore.open(tmp_path / "s"),
        TokenStore.open(tmp_path / "s", "validation"),
    )
    manifest = json.loads((tmp_path / "s/manifest.json").read_text())
    assert store.manifest == made.manifest
    assert manifest["num_examples"] == len(store)
    assert manifest["num_validation_examples"] == len(validation)
    assert manifest["num_tokens"] == store.lengths.sum()
    assert manifest["num_target_tokens"] == store.target_lengths.sum()
    assert manifest["num_target_tokens"] == sum(int(item.loss_mask.sum()) for item in iter(store))
    assert manifest["splits"]["validation"]["num_tokens"] == validation.lengths.sum()
    assert manifest["rows_read"] == manifest["rows_kept"] == 200 == len(store) + len(validation)
    assert manifest["rows_dropped"] == {}
    assert manifest["length_quantiles"]["max"] == store.lengths.max()
    assert manifest["sources"][0]["rows"] == 200
    assert (tmp_path / "s/ledger.jsonl").read_bytes() == b""


def test_fresh_processes_make_the_same_store_as_forks(
    tmp_path: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on macOS. The fast engine and the template's limits go along."""
    settings = replace(SETTINGS, val_fraction=0.2)
    tokenizer = load_tokenizer(str(SAMPLE_TOKENIZER)).fast()
    for name, forks in (("forked", True), ("fresh", False)):
        monkeypatch.setattr("sftctl.data.prepare.workers.can_fork", lambda forks=forks: forks)
        options = PrepareOptions(num_workers=2, batch_bytes=4000)
        made = prepare_store([rows], tmp_path / name, tokenizer, settings, options=options)
        assert made.manifest.engine_rows_checked > 0
    expected, found = (
        {
            path.relative_to(tmp_path / name): path.read_bytes()
            for path in (tmp_path / name).rglob("*")
            if path.is_file()
        }
        for name in ("forked", "fresh")
    )
    assert expected == found and len(found) > 8


def test_the_store_holds_its_own_tokenizer(
    tmp_path: Path, chatml: ChatTokenizer, rows: Path
) -> None:
    prepare_store([rows], tmp_path / "s", chatml, SETTINGS)
    copy = load(tmp_path / "s/tokenizer")
    assert copy.hf.chat_template == CHATML
    assert copy.encode("Hi<|im_end|>").tolist() == chatml.encode("Hi<|im_end|>").tolist()


def overlong(tmp_path: Path) -> Path:
    rows = [row("Short?"), row("Long?", "word " * 99), row("word " * 99), row("Short too?")]
    return written(tmp_path / "long.jsonl", rows)


def ledger_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "ledger.jsonl").read_text().splitlines()]


def test_a_long_row_is_truncated_and_one_left_without_target_dropped(
    tmp_path: Path, chatml: ChatTokenizer
) -> None:
    path = overlong(tmp_path)
    uncut = TokenStore.open(_prepared(tmp_path / "w", path, chatml, max_seq_len=2048)).lengths
    store = TokenStore.open(_prepared(tmp_path / "s", path, chatml))
    assert store.lengths.tolist() == [uncut[0], 64, uncut[3]]
    manifest = store.manifest
    assert (manifest.rows_read, manifest.rows_kept, manifest.rows_truncated) == (4, 3, 1)
    assert manifest.rows_dropped == {"no_target": 1}
    lost = [("truncated", 2, uncut[1] - 64), ("no_target", 3, uncut[2])]
    entries = ledger_of(tmp_path / "s")
    assert [(e["file"], e["reason"], e["line"], e["tokens_lost"]) for e in entries] == [
        (str(path), *entry) for entry in lost
    ]
    assert manifest.tokens_lost == {reason: tokens for reason, _, tokens in lost}


def test_overflow_drop_drops_every_long_row(tmp_path: Path, chatml: ChatTokenizer) -> None:
    store = TokenStore.open(_prepared(tmp_path / "s", overlong(tmp_path), chatml, overflow="drop"))
    assert len(store) == 2
    assert store.manifest.rows_dropped == {"too_long_dropped": 2}
    assert [entry["line"] for entry in ledger_of(tmp_path / "s")] == [2, 3]


def _prepared(
    output: Path, path: Path, tokenizer: ChatTokenizer, strict: bool = False, **changes: Any
) -> Path:
    options = PrepareOptions(strict=strict)
    prepare_store([path], output, tokenizer, replace(SETTINGS, **changes), options=options)
    return output


def test_strict_allows_no_row_to_be_shortened(tmp_path: Path, chatml: ChatTokenizer) -> None:
    path = overlong(tmp_path)
    with pytest.raises(
        DataError, match=rf"{path}:2: truncated to the maximum length: \d+ tokens are lost"
    ) as caught:
        _prepared(tmp_path / "s", path, chatml, strict=True)
    assert caught.value.exit_code == 3
    assert os.listdir(tmp_path) == ["long.jsonl"]


def test_a_row_never_changes_its_split(tmp_path: Path, chatml: ChatTokenizer, rows: Path) -> None:
    _prepared(tmp_path / "a", rows, chatml, val_fraction=0.3)
    lines = rows.read_text().splitlines()
    others = [row(f"Another {i}?") for i in range(50)]
    written(rows, [*others, *reversed(lines), *others])
    _prepared(tmp_path / "b", rows, chatml, val_fraction=0.3)
    sides: dict[str, str] = {}
    for store in ("a", "b"):
        for split in ("train", "validation"):
            for text in texts_of(tmp_path / store, split, chatml):
                assert sides.setdefault(text, split) == split
    assert 30 < list(sides.values()).count("validation") < 120


BAD_ROWS = [
    ("{broken}", "broken_json", "broken JSON at column "),
    ("", None, ""),
    ({"conversations": [{"from": "robot", "value": "x"}]}, "bad_role", "unknown role 'robot'"),
    ({"messages": []}, "empty", "empty conversation"),
    ({"messages": [{"role": "user", "content": "x"}]}, "no_target", "no assistant turn to train"),
    ({"words": "x"}, "bad_shape", "unknown row shape, with keys: words"),
    ("[1]", "bad_shape", "a row must be a JSON object, but this is a list"),
    ('{"instruction": "\\udc00", "output": ""}', "broken_json", "broken JSON at column "),
    ('{"messages": [{"role": "user"', "cut_off", "the file ends within this row"),
]


def test_a_malformed_row_is_dropped_and_recorded_in_the_ledger(
    tmp_path: Path, chatml: ChatTokenizer
) -> None:
    path = written(tmp_path / "rows.jsonl", [row("a"), *(bad for bad, _, _ in BAD_ROWS)])
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    store = TokenStore.open(_prepared(tmp_path / "s", path, chatml))
    expected = [(n, reason, detail) for n, (_, reason, detail) in enumerate(BAD_ROWS, 2) if reason]
    ledger = ledger_of(tmp_path / "s")
    assert [(entry["line"], entry["reason"]) for entry in ledger] == [e[:2] for e in expected]
    for entry, (_, _, detail) in zip(ledger, expected, strict=True):
        assert entry["detail"].startswith(detail)
        assert entry["file"] == str(path)
        assert (entry["tokens_lost"] > 0) == (entry["reason"] == "no_target")  # it was rendered
    manifest = store.manifest
    assert (manifest.rows_read, manifest.rows_kept, len(store)) == (len(expected) + 1, 1, 1)
    assert manifest.rows_dropped == Counter(reason for _, reason, _ in expected)
    assert manifest.sources[0].rows == manifest.rows_read
    assert manifest.sources[0].shapes == {"alpaca": 1, "messages": 1}


@pytest.mark.parametrize(("bad", "reason", "message"), [row for row in BAD_ROWS if row[1]])
def test_strict_stops_at_a_malformed_row_and_leaves_nothing(
    tmp_path: Path, chatml: ChatTokenizer, bad: object, reason: str, message: str
) -> None:
    path = written(tmp_path / "rows.jsonl", [row("a"), bad])
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    with pytest.raises(DataError) as caught:
        _prepared(tmp_path / "s", path, chatml, strict=True)
    assert caught.value.message.startswith(f"{path}:2: {message}")
    assert os.listdir(tmp_path) == ["rows.jsonl"]


def test_invalid_utf8_is_a_reason_too(tmp_path: Path, chatml: ChatTokenizer, rows: Path) -> None:
    rows.write_bytes(b'{"instruction": "\xff", "output": "x"}\n' + rows.read_bytes())
    _prepared(tmp_path / "s", rows, chatml)
    [entry] = ledger_of(tmp_path / "s")
    assert (entry["line"], entry["reason"], entry["detail"]) == (1, "invalid_utf8", "invalid UTF-8")


def test_an_interrupted_preparation_leaves_nothing(
    tmp_path: Path, chatml: ChatTokenizer, rows: Path
) -> None:
    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_store([rows], tmp_path / "s", chatml, SETTINGS, on_progress=interrupt)
    assert os.listdir(tmp_path) == ["rows.jsonl"]


def test_progress_counts_rows_and_tokens(tmp_path: Path, chatml: ChatTokenizer) -> None:
    path = written(tmp_path / "rows.jsonl", [row(str(i)) for i in range(300)])
    progress: list[Progress] = []
    options = PrepareOptions(batch_bytes=1000)
    made = prepare_store([path], tmp_path / "s", chatml, SETTINGS, (), progress.append, options)
    assert len(progress) > 9
    assert [each.num_rows for each in progress] == sorted(each.num_rows for each in progress)
    last, size = progress[-1], path.stat().st_size
    assert (last.num_rows, last.num_tokens) == (300, made.manifest.num_tokens)
    assert (last.num_bytes, last.total_bytes) == (size - 300, size)  # without the newlines


def test_progress_knows_no_total_for_compressed_files(
    tmp_path: Path, chatml: ChatTokenizer, rows: Path
) -> None:
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress(rows.read_bytes()))
    progress: list[Progress] = []
    prepare_store([rows, packed], tmp_path / "s", chatml, SETTINGS, (), progress.append)
    assert progress[-1].num_rows == 400
    assert {each.total_bytes for each in progress} == {None}


def test_an_output_that_cannot_be_written_is_refused(
    tmp_path: Path, chatml: ChatTokenizer, rows: Path
) -> None:
    refused = rf"^{rows}/s: can't be written: {rows} is not a directory$"
    with pytest.raises(ConfigError, match=refused):
        prepare_store([rows], rows / "s", chatml, SETTINGS)


def test_a_fraction_and_inputs_for_validation_can_not_be_used_together(
    tmp_path: Path, chatml: ChatTokenizer, rows: Path
) -> None:
    settings = replace(SETTINGS, val_fraction=0.5)
    with pytest.raises(ConfigError, match="validation fraction and validation inputs can't"):
        prepare_store([rows], tmp_path / "s", chatml, settings, [rows])


def test_nothing_left_to_train_on_is_an_error(
    tmp_path: Path, chatml: ChatTokenizer, rows: Path
) -> None:
    message = "no row is left to train on out of 200 read; too_long_dropped: 200"
    with pytest.raises(DataError, match=message) as caught:
        _prepared(tmp_path / "s", rows, chatml, max_seq_len=4, overflow="drop")
    assert str(caught.value.hint).startswith(f"the first: {rows}:1: longer than ")
    with pytest.raises(DataError, match="no row is left to train on out of 200 read") as caught:
        _prepared(tmp_path / "s", rows, chatml, val_fraction=1.0)
    assert caught.value.hint == "lower --val-fraction"
    assert os.listdir(tmp_path) == ["rows.jsonl"]


def test_a_file_without_rows_is_an_error_only_if_no_file_has_rows(
    tmp_path: Path, chatml: ChatTokenizer, rows: Path
) -> None:
    empty = written(tmp_path / "empty.jsonl", [])
    with pytest.raises(DataError, match=f"{empty}: no rows in this file"):
        _prepared(tmp_path / "s", empty, chatml)
    manifest = prepare_store([empty, rows], tmp_path / "s", chatml, SETTINGS).manifest
    assert [source.rows for source in manifest.sources] == [0, 200]


def test_duplicates_are_counted_whatever_their_shape(
    tmp_path: Path, chatml: ChatTokenizer, rows: Path
) -> None:
    same = {"prompt": "Question 3?", "completion": "Yes."}
    others = written(tmp_path / "others.jsonl", [row("New?"), row("New?"), same])
    manifest = prepare_store([rows, others], tmp_path / "s", chatml, SETTINGS).manifest
    assert (manifest.rows_duplicated, manifest.rows_kept) == (2, 203)
    assert [source.shapes for source in manifest.sources] == [
        {"alpaca": 200},
        {"alpaca": 2, "prompt-completion": 1},
    ]


def test_a_row_of_the_validation_inputs_is_never_trained(
    tmp_path: Path, chatml: ChatTokenizer, rows: Path
) -> None:
    held_out = [row("Mine?"), row("Question 3?"), row("Question 3?"), row("long " * 99)]
    validation = written(tmp_path / "validation.jsonl", held_out)
    manifest = prepare_store([rows], tmp_path / "s", chatml, SETTINGS, [validation]).manifest
    assert manifest.num_validation_examples == 3
    assert manifest.rows_dropped == {"no_target": 1, "in_validation": 1}
    assert manifest.rows_duplicated == 1
    trained, validated = (set(texts_of(tmp_path / "s", split, chatml)) for split in SPLITS)
    assert not trained & validated
    [_, entry] = ledger_of(tmp_path / "s")
    assert (entry["file"], entry["line"]) == (str(rows), 4)
    assert entry["tokens_lost"] > 0


def test_the_same_inputs_give_the_same_bytes(
    tmp_path: Path, chatml: ChatTokenizer, rows: Path
) -> None:
    for name in "ab":
        _prepared(tmp_path / name, rows, chatml, val_fraction=0.1)
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*")]
    assert len(files) > 10
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("num_workers", [2, 3])
def test_several_workers_make_the_same_store_as_one(
    tmp_path: Path, chatml: ChatTokenizer, rows: Path, num_workers: int
) -> None:
    settings = replace(SETTINGS, max_seq_len=24, val_fraction=0.2)
    for name, workers in (("a", 1), ("b", num_workers)):
        options = PrepareOptions(num_workers=workers, batch_bytes=500)
        prepare_store([rows, rows], tmp_path / name, chatml, settings, options=options)
    for file in ("manifest.json", "ledger.jsonl", "train/tokens-00000.npy"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


class SometimesWrong(Splintr):
    """A fast engine that returns other ids for texts with certain words."""

    def __init__(self, tokenizer: ChatTokenizer, wrong_in: str) -> None:
        super().__init__(tokenizer.hf)
        self.name = "fast 1.0"
        self.wrong_in = wrong_in

    def encode(self, text: str) -> Ids:
        return super().encode(text) + (self.wrong_in in text)


def sometimes_wrong(tokenizer: ChatTokenizer, wrong_in: str) -> ChatTokenizer:
    return tokenizer.with_encoder(SometimesWrong(tokenizer, wrong_in), "a toy")


@pytest.mark.parametrize("wrong_in", ["Question 150?", "Question 2?"])
@pytest.mark.parametrize("num_workers", [1, 2])
def test_an_engine_that_differs_on_the_users_own_rows_is_not_used(
    tmp_path: Path, chatml: ChatTokenizer, rows: Path, num_workers: int, wrong_in: str
) -> None:
    """Row 2 is one of those that the reference encodes too; row 150 is not."""
    options = PrepareOptions(num_workers=num_workers, batch_bytes=5000)
    expected = prepare_store([rows], tmp_path / "a", chatml, SETTINGS, options=options).manifest
    wrong = sometimes_wrong(chatml, wrong_in)
    made = prepare_store([rows], tmp_path / "b", wrong, SETTINGS, options=options).manifest
    assert made.engine == expected.engine != "fast 1.0"
    assert "fast 1.0 returns other token ids" in made.engine_reason
    assert made.engine_rows_checked == 0
    assert made.sources == expected.sources
    file = "train/tokens-00000.npy"
    assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_manifest_says_on_how_many_rows_a_fast_engine_was_checked(
    tmp_path: Path, chatml: ChatTokenizer, rows: Path
) -> None:
    options = PrepareOptions(batch_bytes=4000)
    tokenizer = sometimes_wrong(chatml, "nowhere")
    made = prepare_store([rows], tmp_path / "s", tokenizer, SETTINGS, options=options).manifest
    assert made.engine == "fast 1.0"
    assert 32 < made.engine_rows_checked < 40


NO_END = CHATML.replace("<|im_end|>", "").replace("<|im_start|>", "### ")


def test_strict_makes_a_failed_audit_an_error(tmp_path: Path, rows: Path) -> None:
    hf = load(SAMPLE_TOKENIZER, NO_END).hf
    hf.eos_token = None
    tokenizer = ChatTokenizer(hf, "without an end")
    audit = prepare_store([rows], tmp_path / "a", tokenizer, SETTINGS).manifest.audit
    assert (audit.passed, audit.turns_without_end, audit.turns) == (False, 200, 200)
    for strict in (tmp_path / "a", tmp_path / "b"):
        with pytest.raises(DataError, match="the mask audit failed: 200 trained turns"):
            _prepared(strict, rows, tokenizer, strict=True)
    assert sorted(os.listdir(tmp_path)) == ["a", "rows.jsonl"]


def test_several_files_follow_each_other(tmp_path: Path, chatml: ChatTokenizer) -> None:
    paths = [written(tmp_path / f"{name}.jsonl", [row(name)]) for name in "ab"]
    prepare_store(paths, tmp_path / "s", chatml, SETTINGS)
    store = TokenStore.open(tmp_path / "s")
    assert [source.file for source in store.manifest.sources] == [str(path) for path in paths]
    assert not np.array_equal(store[0].input_ids, store[1].input_ids)
