"""A store's fingerprint: what it depends on, and that it stays the same across versions."""

from dataclasses import replace
from pathlib import Path

import pytest

from sftctl.config.schema import DataConfig
from sftctl.data.prepare.fingerprint import PrepareOptions, store_fingerprint
from sftctl.data.prepare.prepare import prepare_store
from sftctl.data.sample import SAMPLE_TOKENIZER
from sftctl.model.tokenizer.tokenizer import ChatTokenizer, Engine
from tests.toys.data import CHATML, load

DATA = DataConfig(max_seq_len=64)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"instruction": "Hi", "output": "Hello"}\n')
    return path


def test_the_fingerprint_is_known_before_and_does_not_depend_on_names_or_workers(
    tmp_path: Path, chatml: ChatTokenizer, rows: Path
) -> None:
    known = store_fingerprint([rows], chatml, DATA)
    assert prepare_store([rows], tmp_path / "s", chatml, DATA).manifest.fingerprint == known
    moved = rows.rename(tmp_path / "moved.jsonl")
    options = PrepareOptions(strict=True, num_workers=3, batch_bytes=9)
    assert store_fingerprint([moved], chatml, DATA, options=options) == known


def test_the_fingerprint_changes_with_each_ingredient(
    tmp_path: Path, chatml: ChatTokenizer, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text('{"instruction": "Other", "output": "Hello"}\n')
    rerendered = load(SAMPLE_TOKENIZER, CHATML + " ")
    retrained = load(SAMPLE_TOKENIZER, CHATML)
    retrained.content_hash = "0" * 64
    changed = [
        replace(DATA, format="alpaca"),
        replace(DATA, max_seq_len=65),
        replace(DATA, overflow="drop"),
        replace(DATA, train_on="last"),
        replace(DATA, val_fraction=0.5),
    ]
    fingerprints = [
        store_fingerprint([rows], chatml, DATA),
        store_fingerprint([other], chatml, DATA),
        store_fingerprint([rows, other], chatml, DATA),
        store_fingerprint([rows], chatml, DATA, [other]),
        store_fingerprint([rows], rerendered, DATA),
        store_fingerprint([rows], retrained, DATA),
        *(store_fingerprint([rows], chatml, data) for data in changed),
        store_fingerprint([rows], chatml, DATA, options=PrepareOptions(engine="hf")),
    ]
    for constant in ("FORMAT_VERSION", "MASK_RULES_VERSION"):
        with monkeypatch.context() as patch:
            patch.setattr(f"sftctl.data.prepare.fingerprint.{constant}", 99)
            fingerprints.append(store_fingerprint([rows], chatml, DATA))
    assert len(set(fingerprints)) == len(fingerprints)


def test_stores_of_older_versions_keep_their_fingerprint(
    chatml: ChatTokenizer, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers were made by the first version with format 2, whose mask rules were number 3.

    A setting of today that is unset must not void every cache.
    """
    monkeypatch.setattr("sftctl.data.prepare.fingerprint.MASK_RULES_VERSION", 3)
    for name in ("content_hash", "template_hash"):
        monkeypatch.setattr(chatml, name, "0" * 64)
    made: list[tuple[DataConfig, Engine, str]] = [
        (DataConfig(), "auto", "c6c9f17656d71b00"),
        (DataConfig(max_seq_len=64, val_fraction=0.5), "hf", "5ca4e1ae365aab58"),
    ]
    for data, engine, fingerprint in made:
        options = PrepareOptions(engine=engine)
        assert store_fingerprint([rows], chatml, data, options=options).startswith(fingerprint)


def test_a_clock_of_the_template_is_frozen_and_in_the_fingerprint(
    tmp_path: Path, rows: Path
) -> None:
    clock = load(SAMPLE_TOKENIZER, "{{ strftime_now('%Y-%m-%d') }}" + CHATML)
    today = store_fingerprint([rows], clock, DATA)
    days = [replace(DATA, date=f"2026-11-0{n}") for n in (1, 2)]
    prints = [store_fingerprint([rows], clock, data) for data in days]
    assert len({today, *prints}) == 3
    manifest = prepare_store([rows], tmp_path / "store", clock, days[0]).manifest
    assert (manifest.date, manifest.fingerprint) == ("2026-11-01", prints[0])


def test_a_date_counts_only_for_a_template_with_a_clock(chatml: ChatTokenizer, rows: Path) -> None:
    dated = replace(DATA, date="2026-11-01")
    assert store_fingerprint([rows], chatml, dated) == store_fingerprint([rows], chatml, DATA)


def test_columns_and_special_text_count_if_they_are_set(chatml: ChatTokenizer, rows: Path) -> None:
    settings = [
        DATA,
        replace(DATA, columns="prompt=instruction,completion=output"),
        replace(DATA, special_text="refuse"),
        replace(DATA, special_text="escape"),
    ]
    assert len({store_fingerprint([rows], chatml, data) for data in settings}) == 4
