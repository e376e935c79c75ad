"""A row of which the template leaves out a message or its reasoning is refused."""

from typing import Any

import pytest

from sftctl.data.ledger import BadRow
from sftctl.data.masks.encode import tokenize
from sftctl.data.sample import SAMPLE_TOKENIZER
from tests.toys.data import CHATML, CountingTokenizer, load
from tests.toys.masks import TURNS, conversation, trained

FORGETS = {
    "system": CHATML.replace("in messages", "in messages if m.role != 'system'"),
    "tool": CHATML.replace("in messages", "in messages if m.role != 'tool'"),
    "content beside calls": CHATML.replace(
        "{{ m.content }}", "{{ (m.tool_calls | tojson) if m.tool_calls else m.content }}"
    ),
}
USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi"}


def refusal(template: str, messages: list[dict[str, Any]], **row: Any) -> tuple[str, str]:
    with pytest.raises(BadRow) as caught:
        tokenize(conversation(messages, **row), load(SAMPLE_TOKENIZER, template), "assistant")
    return caught.value.reason, caught.value.message.removeprefix("rows.jsonl:7: ")


def content_lost(number: int) -> tuple[str, str]:
    return (
        "message_not_rendered",
        f"message {number}: the chat template leaves out its content",
    )


def reasoning_lost(number: int) -> tuple[str, str]:
    return (
        "message_not_rendered",
        f"message {number}: the chat template leaves out its reasoning",
    )


@pytest.mark.parametrize("text", ["Be kind.", "H", "assistant", "Hi"])
def test_a_system_message_that_is_left_out_is_refused_whatever_it_says(text: str) -> None:
    system = {"role": "system", "content": text}
    assert refusal(FORGETS["system"], [system, USER, ANSWER]) == content_lost(1)
    assert refusal(FORGETS["system"], [USER, ANSWER, system, USER, ANSWER]) == content_lost(3)


def test_a_tool_result_that_is_left_out_is_refused() -> None:
    result = {"role": "tool", "content": "Hi"}
    assert refusal(FORGETS["tool"], [USER, result, ANSWER]) == content_lost(2)


def test_text_beside_a_call_that_is_left_out_is_refused() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    calling = {"role": "assistant", "content": "f", "tool_calls": [call]}
    assert refusal(FORGETS["content beside calls"], [USER, calling]) == content_lost(2)


def test_a_template_that_always_refuses_a_changed_message_renders_it() -> None:
    template = CHATML.replace(
        "{% for",
        "{% if messages[0].content != 'Hi' %}{{ raise_exception('no') }}{% endif %}{% for",
        1,
    ).replace("{{ m.content }}", "{{ m.content if m.role == 'assistant' else 'Hi' }}")
    assert trained(load(SAMPLE_TOKENIZER, template), [USER, ANSWER]) == ["Hi<|im_end|>"]


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_under_any_name_that_is_left_out_is_refused(
    key: str, chatml: CountingTokenizer, minimind: CountingTokenizer
) -> None:
    thinking = ANSWER | {key: "Two and two."}
    assert refusal(CHATML, [USER, thinking]) == reasoning_lost(2)
    assert trained(minimind, [USER, thinking]) == [
        "<think>\nTwo and two.\n</think>\n\nHi<|im_end|>"
    ]
    assert refusal(CHATML, [USER, ANSWER | {key: "Hi"}]) == reasoning_lost(2)


def test_a_thinking_block_that_is_cut_out_of_the_content_is_refused() -> None:
    cuts = CHATML.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] }}")
    for thought in ("Two.", "2"):
        answer = {"role": "assistant", "content": f"<think>\n{thought}\n</think>\n\n2"}
        assert refusal(cuts, [USER, answer]) == reasoning_lost(2)


def test_reasoning_of_a_turn_that_is_only_context_may_be_left_out(
    chatml: CountingTokenizer,
) -> None:
    context = ANSWER | {"reasoning_content": "hm", "train": False}
    assert trained(chatml, [USER, context, USER, ANSWER]) == ["Hi<|im_end|>"]
    thinking = ANSWER | {"reasoning_content": "hm"}
    assert trained(chatml, [USER, thinking, USER, ANSWER], "last") == ["Hi<|im_end|>"]


def test_a_text_of_everything_needs_all_reasoning() -> None:
    tokenizer = load(SAMPLE_TOKENIZER, CHATML)
    row = conversation([USER, ANSWER | {"reasoning_content": "hm"}])
    with pytest.raises(BadRow, match="message 2: the chat template leaves out its reasoning"):
        tokenize(row, tokenizer, "all")


def test_a_conversation_that_is_rendered_completely_is_kept(chatml: CountingTokenizer) -> None:
    assert len(trained(chatml, TURNS)) == 2
