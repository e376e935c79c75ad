"""Texts, token ids and masks equal those of an independent reference, row by row."""

from pathlib import Path
from typing import Any

import pytest

from sftctl.data.conversations.conversation import Conversation
from sftctl.data.sample import SAMPLE_TOKENIZER
from tests.toys.data import SHARED, conversations, read
from tests.toys.first_sample import TRAIN, VALIDATION
from tests.toys.masks import conversation
from tests.toys.masks.comparison import Comparison
from tests.toys.masks.templates import FAMILIES

FILES = {
    "alpaca_en_demo.json": 999,
    "alpaca_zh_demo.json": 1000,
    "glaive_toolcall_en_demo.json": 300,
    "fastchat_dummy_conversation.json": 500,
}


def rows_of(*paths: Path) -> list[Conversation]:
    return [row for path in paths for row in conversations(path)]


def turns(*said: tuple[str, str], **row: Any) -> Conversation:
    messages = [{"role": role, "content": content} for role, content in said]
    return conversation(messages, **row)


NASTY = [
    turns(("user", "Hi"), ("assistant", "Hello")),
    turns(("system", "Be kind."), ("user", " Hi\n"), ("assistant", "\n\nHello \n")),
    turns(("assistant", "I begin."), ("user", "Hi"), ("assistant", "So do I.")),
    turns(*[("user", "你好🤖"), ("assistant", "🤖你好，世界👩‍👩‍👧")] * 3),
    turns(("user", "x"), ("assistant", "")),
    turns(("user", "Write <think>\n"), ("assistant", "<think>\nhm\n</think>\n\nYes"), ("user", "y"),
          ("assistant", " <think>x</think>\nhere"), ("user", "?"),
          ("assistant", "<think>last</think>end")),
    turns(("user", "x"), ("user", "y"), ("assistant", "two questions")),
    turns(("user", "x"), ("assistant", "one"), ("assistant", "two")),
    turns(("system", ""), ("user", "x"), ("assistant", "def f():\n\treturn 1\n\n\n")),
    turns(("user", "no answer")),
    turns(("user", "Find"), ("tool", "[1]"), ("tool", "[2]"), ("assistant", "Found")),
    *[read(
        {
            "tools": [{"name": "search", "about": "é"}],
            "messages": [
                {"role": "system", "content": "S"},
                {"role": "user", "content": "Find"},
                {"role": "assistant", "content": "Wait."} | thought | {
                 "tool_calls": [{"name": "search", "arguments": {"q": "crêpes"}},
                                {"name": "search", "arguments": "{}"}]},
                {"role": "tool", "content": "[1]"},
                {"role": "assistant", "content": None,
                 "tool_calls": [{"name": "search", "arguments": {}}]},
                {"role": "tool", "content": "[2]"},
                {"role": "assistant", "content": "Found"} | thought,
                {"role": "user", "content": "Thanks"},
                {"role": "assistant", "content": "Welcome"},
            ],
        },
    ) for thought in ({}, {"reasoning_content": "\nhm\n"})],
]  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_nasty_and_plain_rows_with_the_template_of_every_family(name: str) -> None:
    comparison = Comparison(SAMPLE_TOKENIZER, name)
    kept = [comparison.assert_equal(row) for row in NASTY]
    assert kept.count(True) >= (5 if name in ("mistral", "gemma") else 9)
    for row in rows_of(TRAIN, VALIDATION):
        assert comparison.assert_equal(row)


@pytest.mark.parametrize("name", FAMILIES)
def test_there_is_one_bos_token_and_the_end_of_turn_is_trained(name: str) -> None:
    comparison, family = Comparison(SAMPLE_TOKENIZER, name), FAMILIES[name]
    [example] = comparison.examples(NASTY[0])
    trained = comparison.tokenizer.decode(example.input_ids[example.loss_mask], False)
    assert trained.endswith("Hello" + family.special[-1])
    if family.bos:
        bos = comparison.hf.convert_tokens_to_ids(family.bos)
        assert example.input_ids.tolist().count(bos) == 1


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("name", ["minimind", *FAMILIES])
def test_rows_of_known_sets_with_minimind_s_tokenizer(file: str, name: str) -> None:
    """Every row with MiniMind's template, every eleventh with others; tests/real takes all."""
    if not SHARED.exists():
        pytest.skip("../shared/data is absent")
    rows = rows_of(SHARED / file)
    assert len(rows) == FILES[file]
    rows = rows if name == "minimind" else rows[::11]
    comparison = Comparison(SHARED / "minimind_tokenizer", name)
    kept = sum(comparison.assert_equal(row) for row in rows)
    assert kept == len(rows) or (name in ("llama3", "mistral", "gemma") and "tool" in file)
