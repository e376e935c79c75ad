"""Text that is tokenized on the fly equals the store made from it."""

import json
from pathlib import Path

import numpy as np
import pytest

from sftctl.bench.text_examples import text_examples
from sftctl.config.load import load_config
from sftctl.config.schema import RunConfig
from sftctl.data.sample import sample_files
from sftctl.errors import DataError
from sftctl.train.preflight.inputs import Inputs, open_inputs
from sftctl.train.preflight.resolve import resolve_config
from sftctl.train.stop import StopRequest
from sftctl.world import ALONE


def opened(path: Path) -> tuple[RunConfig, Inputs]:
    config = resolve_config(load_config(None, {"data.path": str(path), "data.max_seq_len": 64}))
    return config, open_inputs(config, ALONE, StopRequest())


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"".join(sample_files()[0].read_bytes().splitlines(keepends=True)[:20]))
    return path


def test_text_gives_the_examples_of_the_store(rows: Path) -> None:
    config, inputs = opened(rows)
    text = text_examples(config, inputs.train, inputs.tokenizer)
    assert len(text) == len(inputs.train)
    assert np.array_equal(text.lengths, inputs.train.lengths)
    assert np.array_equal(text.target_lengths, inputs.train.target_lengths)
    for index in range(len(text)):
        assert np.array_equal(text[index].input_ids, inputs.train[index].input_ids)
        assert np.array_equal(text[index].loss_mask, inputs.train[index].loss_mask)


def test_rows_that_can_not_be_kept_are_left_out(rows: Path) -> None:
    config, inputs = opened(rows)
    rows.write_text(rows.read_text() + json.dumps({"messages": []}) + "\n")
    assert len(text_examples(config, inputs.train, inputs.tokenizer)) == len(inputs.train)


def test_a_store_without_its_source_files_is_an_error(rows: Path) -> None:
    _, inputs = opened(rows)
    rows.unlink()
    config, again = opened(inputs.train.path)
    with pytest.raises(DataError, match="rows.jsonl: missing: .* was made from this file"):
        text_examples(config, again.train, again.tokenizer)
