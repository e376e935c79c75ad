"""The bundled sample: its files are what their programs write, and show what the tool can do."""

from pathlib import Path
from typing import Any

import pytest

from sftctl import jsonio
from sftctl.config.load import load_config
from sftctl.data.prepare.prepare import prepare_files
from sftctl.data.sample import SAMPLE_TOKENIZER, sample_files
from sftctl.data.store import TokenStore
from tests.sample import generate, tokenizer


@pytest.fixture(scope="module")
def train() -> list[dict[str, Any]]:
    return [*jsonio.read_lines(sample_files()[0])]


@pytest.fixture(scope="module")
def validation() -> list[dict[str, Any]]:
    return [*jsonio.read_lines(sample_files()[1])]


def questions_of(rows: list[dict[str, Any]]) -> set[str]:
    """The only questions of rows without a system message or tools."""
    short = [row["messages"] for row in rows if len(row["messages"]) == 2]
    return {messages[0]["content"] for messages in short}


def test_the_files_are_what_their_programs_write(tmp_path: Path) -> None:
    generate.main(tmp_path)
    for file in sample_files():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()
    tokenizer.main(tmp_path)
    for file in SAMPLE_TOKENIZER.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()


def test_the_questions_to_validate_with_are_new(
    train: list[dict[str, Any]], validation: list[dict[str, Any]]
) -> None:
    asked = questions_of(validation)
    assert len(asked) >= 100
    assert not asked & {turn["content"] for row in train for turn in row["messages"]}


def test_the_sample_has_systems_tools_context_several_turns_and_two_languages(
    train: list[dict[str, Any]],
) -> None:
    turns = [turn for row in train for turn in row["messages"]]
    assert {turn["role"] for turn in turns} == {"system", "user", "assistant", "tool"}
    assert any("tool_calls" in turn for turn in turns)
    assert any(turn.get("train") is False for turn in turns)
    assert max(len(row["messages"]) for row in train) > 6
    assert sum("？" in turn["content"] for turn in turns) > 100


def test_every_row_is_kept_and_a_tool_call_is_trained(tmp_path: Path) -> None:
    train, validation = sample_files()
    made = prepare_files([train], [validation], tmp_path / "s", load_config())
    assert made.manifest.rows_dropped == {}
    store = TokenStore.open(tmp_path / "s")
    bundled = store.load_tokenizer()
    trained = [bundled.decode(one.input_ids[one.loss_mask], False) for one in iter(store)]
    calls = [text for text in trained if text.startswith("<tool_call>")]
    assert len(calls) > 10
    assert all("</tool_call><|im_end|>It is" in text for text in calls)
