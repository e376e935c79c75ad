"""What a run reads: a store that fits it, or one in the cache that is prepared from files."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sftctl.config.load import load_config
from sftctl.config.schema import RunConfig
from sftctl.data.prepare.fingerprint import PrepareOptions, StoreInputs
from sftctl.data.prepare.prepare import prepare_files
from sftctl.errors import ConfigError, DataError
from sftctl.train.preflight.inputs import Inputs, is_of_older_rules, open_inputs, tokenizer_of
from sftctl.train.preflight.resolve import resolve_config
from sftctl.train.stop import StopRequest
from sftctl.world import ALONE
from tests.toys.checkpoints import make_manifest
from tests.toys.data import CHATML, row, written


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/sftctl/stores"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return written(tmp_path / "rows.jsonl", [row(f"Question {i}?") for i in range(20)])


def config_with(**settings: Any) -> RunConfig:
    """A configuration with some settings; `data__path` stands for `data.path`."""
    return load_config(None, {key.replace("__", "."): v for key, v in settings.items()})


def opened(**settings: Any) -> Inputs:
    return open_inputs(resolve_config(config_with(**settings)), ALONE, StopRequest())


def test_a_file_is_prepared_once_into_the_cache(cache: Path, rows: Path) -> None:
    first = opened(data__path=str(rows))
    [store] = cache.iterdir()
    made_at = (store / "manifest.json").stat().st_mtime_ns
    assert opened(data__path=str(rows)).train.path == first.train.path == store
    assert (store / "manifest.json").stat().st_mtime_ns == made_at
    assert (len(first.train), first.validation) == (20, None)
    assert opened(data__path=str(rows), data__train_on="last").train.path != store


def test_a_damaged_store_in_the_cache_is_made_again(cache: Path, rows: Path) -> None:
    opened(data__path=str(rows))
    [store] = cache.iterdir()
    (store / "train/lengths.npy").write_bytes(b"")
    assert len(opened(data__path=str(rows)).train) == 20
    assert [*cache.iterdir()] == [store]


def test_without_data_the_sample_is_prepared_with_its_validation_part() -> None:
    inputs = opened()
    assert inputs.validation is not None and len(inputs.validation) > 0
    with pytest.raises(ConfigError, match="the bundled sample has its own validation part"):
        opened(data__val_fraction=0.5)


def test_a_store_is_opened_if_it_fits_and_refused_if_it_does_not(
    tmp_path: Path, rows: Path
) -> None:
    (tmp_path / "chatml.jinja").write_text(CHATML)
    (tmp_path / "other.jinja").write_text(CHATML + " ")
    template = {"data__chat_template": str(tmp_path / "chatml.jinja")}
    config = config_with(data__train_on="last", data__val_fraction=0.5, **template)
    prepare_files([rows], [], tmp_path / "s", config)
    store = {"data__path": str(tmp_path / "s")}
    assert len(opened(**store).train) > 0  # defaults accept what the store has
    assert len(opened(**store, **template, data__train_on="last").train) > 0
    for key, value, message in (
        ("train_on", "all", "prepared with train_on last, but the run asks for all"),
        ("overflow", "drop", "prepared with overflow truncate, but the run asks for drop"),
        ("format", "alpaca", "prepared with format auto, but the run asks for alpaca"),
        ("val_fraction", 0.2, "prepared with val_fraction 0.5, but the run asks for 0.2"),
        ("chat_template", str(tmp_path / "other.jinja"), "prepared with another chat template"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            opened(**store, **{f"data__{key}": value})
        assert caught.value.hint == f"prepare the data again, or remove data.{key}"


def test_a_store_with_longer_examples_than_the_run_allows_is_refused(
    tmp_path: Path, rows: Path
) -> None:
    prepare_files([rows], [], tmp_path / "s", config_with())
    message = r"data\.max_seq_len: 4, but .*s holds an example of \d+ tokens"
    with pytest.raises(ConfigError, match=message):
        opened(data__path=str(tmp_path / "s"), data__max_seq_len=4)


def test_paths_become_absolute_and_names_on_the_hub_stay(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    config = resolve_config(config_with(model__name="model", model__tokenizer="someone/else"))
    assert config.model.name == str(tmp_path / "model")
    assert config.model.tokenizer == "someone/else"
    rates = [resolve_config(config_with(model__name=n)).optim.learning_rate for n in ("tiny", "x")]
    assert rates == [1e-3, 2e-5]


def test_data_of_older_mask_rules_is_recognized_also_in_a_mixture(rows: Path) -> None:
    """Of a mixture, each source is as it was or made by older rules; else the data is other."""
    other = written(rows.parent / "other.jsonl", [row("Other?")])
    sources = [{"name": "a", "path": str(rows)}, {"name": "b", "path": str(other)}]
    config = resolve_config(config_with(data__sources=sources))
    made = {}
    for name, path in (("a", rows), ("b", other)):
        tokenizer, options = tokenizer_of(config), PrepareOptions()
        with StoreInputs.found([path], tokenizer, config.data, (), options) as made_from:
            made[name] = made_from.fingerprint(), made_from.older_fingerprints()[-1]
    (a, older_a), (b, older_b) = made["a"], made["b"]
    assert opened(data__path=str(rows)).train.manifest.fingerprint == a
    for recorded, expected in (
        ({"a": a, "b": older_b}, True),
        ({"a": older_a, "b": older_b}, True),
        ({"a": a, "b": b}, False),
        ({"a": older_a, "b": "other"}, False),
        ({"a": older_a}, False),
    ):
        manifest = replace(make_manifest(3), source_fingerprints=recorded)
        assert is_of_older_rules(config, manifest) is expected
    alone = config_with(data__path=str(rows))
    assert is_of_older_rules(alone, replace(make_manifest(3), data_fingerprint=older_a))
    assert not is_of_older_rules(alone, replace(make_manifest(3), data_fingerprint=older_b))
