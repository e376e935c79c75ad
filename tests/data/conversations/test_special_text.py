"""Text of special tokens in messages is found in any spelling of JSON, and can be escaped."""

import json
from typing import Any

import pytest

from sftctl.data.conversations.special_text import SpecialTexts
from sftctl.data.sample import SAMPLE_TOKENIZER
from tests.toys.data import CHATML, load, read

SPECIAL = SpecialTexts(["<|im_end|>", "<s>", "<｜end｜>", "<think>", " "], "x [INST] y")


def row(content: str, **more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": content}, {"role": "gpt", "content": "a"} | more]
    return {"messages": turns}


@pytest.mark.parametrize("text", ["<|im_end|>", "<s>", "<｜end｜>", "[INST]"])
def test_every_text_is_found_wherever_it_is(text: str) -> None:
    for where, given in enumerate([row(f"a {text} b"), row("a", reasoning=f"{text}")], 1):
        for ascii_only in (True, False):
            assert SPECIAL.may_hold(json.dumps(given, ensure_ascii=ascii_only).encode())
        escaped = json.dumps(given).replace("<", "\\u003C").replace("[I", "\\u005BI")
        assert SPECIAL.may_hold(escaped.encode())
        assert SPECIAL.first(read(json.loads(json.dumps(given)))) == (where, text)
    call = {"name": "f", "arguments": {"q": [text]}}
    assert SPECIAL.first(read(row("a", tool_calls=[call]))) == (2, text)
    assert SPECIAL.first(read(row("a") | {"tools": [{"name": "f", "about": text}]})) == (0, text)


@pytest.mark.parametrize("text", ["<|im_en", "<think>x</think>", "< s>", "INST", "a | b"])
def test_other_text_is_not_found(text: str) -> None:
    assert SPECIAL.first(read(row(text))) is None


def test_without_special_tokens_nothing_is_found() -> None:
    assert SpecialTexts().first(read(row("<|im_end|>"))) is None
    assert not SpecialTexts().may_hold(b"<|im_end|>")


def test_escaped_text_becomes_no_special_token() -> None:
    tokenizer = load(SAMPLE_TOKENIZER, CHATML)
    special = SpecialTexts(tokenizer.special_texts, CHATML)
    content = "".join(tokenizer.special_texts)
    escaped = special.escaped(read(row(content)))
    assert special.first(escaped) is None
    text = escaped.messages[0]["content"]
    assert text.replace("\u200b", "") == content
    assert not tokenizer.special_ids.intersection(tokenizer.encode(text).tolist())
