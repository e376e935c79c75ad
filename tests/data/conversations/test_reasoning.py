"""The reasoning of a message is one text, without the tags that the template writes around it."""

from typing import Any

import pytest

from sftctl.data.ledger import BadRow
from tests.toys.data import read

THOUGHT = {"type": "thinking", "thinking": "a"}


def answer_of(content: Any, **more: Any) -> tuple[str | None, str]:
    """Reasoning and content of an assistant message, as they are read."""
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": content} | more,
    ]
    message = read({"messages": turns}).messages[1]
    return message.get("reasoning_content"), message["content"]


@pytest.mark.parametrize(
    "text", ["<think>\na\n</think>", "<think>a", "\na</think>\n", "[THINK]a[/THINK]"]
)
@pytest.mark.parametrize("key", ["reasoning_content", "thinking"])
def test_tags_around_reasoning_are_removed(key: str, text: str) -> None:
    assert answer_of("Yes", **{key: text}) == ("a", "Yes")
    assert answer_of([THOUGHT | {"thinking": text}, {"type": "text", "text": "Yes"}])[0] == "a"


def test_reasoning_that_only_mentions_an_opening_tag_is_kept() -> None:
    assert answer_of("Yes", reasoning="Use <think> here?") == ("Use <think> here?", "Yes")


@pytest.mark.parametrize("text", ["a</think>b", "<think>a</think>b<think>c</think>"])
def test_reasoning_that_holds_a_closing_tag_is_refused(text: str) -> None:
    with pytest.raises(
        BadRow, match="the reasoning contains </think>, which ends a thinking block"
    ):
        answer_of("Yes", reasoning_content=text)


@pytest.mark.parametrize("block", ["<think>\na\n</think>\n\n", "<think>\n\n</think>\n\n"])
def test_a_block_in_the_content_that_repeats_the_reasoning_is_removed(block: str) -> None:
    assert answer_of(f"{block}Yes", reasoning_content="a") == ("a", "Yes")
    assert answer_of([THOUGHT, {"type": "text", "text": f"{block}Yes"}]) == ("a", "Yes")


@pytest.mark.parametrize(
    ("content", "more"),
    [
        ("<think>b</think>Yes", {"reasoning_content": "a"}),
        ([THOUGHT, {"type": "text", "text": "Yes"}], {"reasoning_content": "b"}),
        ("Yes", {"reasoning_content": "a", "thinking": "b"}),
    ],
)
def test_two_reasonings_are_refused(content: Any, more: dict[str, Any]) -> None:
    with pytest.raises(BadRow, match="are different texts, but a message has only one reasoning"):
        answer_of(content, **more)


def test_lists_of_reasoning_are_read_where_no_field_has_it() -> None:
    blocks = [{"type": "thinking", "thinking": "a", "signature": "x"}]
    details = [{"type": "reasoning.text", "text": "a"}, {"type": "reasoning.text", "text": "b"}]
    assert answer_of("Yes", thought="a") == ("a", "Yes")
    assert answer_of("Yes", thinking_blocks=blocks) == ("a", "Yes")
    assert answer_of("Yes", reasoning_details=details) == ("ab", "Yes")
    assert answer_of("Yes", reasoning_details=[{"type": "x"}], reasoning="c") == ("c", "Yes")
    for other in ([{"type": "reasoning.encrypted", "data": "x"}], ["a"], {"type": "thinking"}):
        with pytest.raises(BadRow, match="'reasoning_details' has reasoning that is not text"):
            answer_of("Yes", reasoning_details=other)


def test_reasoning_in_a_text_part_is_refused() -> None:
    with pytest.raises(BadRow, match="a text part of 'content' also has 'thinking'"):
        answer_of([{"type": "text", "text": "Yes", "thinking": "a"}])
