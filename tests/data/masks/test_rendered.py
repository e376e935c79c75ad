"""A row of which the template leaves out a message or its reasoning is refused."""

from typing import Any

import pytest

from sftctl.data.ledger import BadRow
from sftctl.data.masks.encode import tokenize
from sftctl.data.sample import SAMPLE_TOKENIZER
from sftctl.model.tokenizer.tokenizer import ChatTokenizer
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
    key: str, thinking_minimind: ChatTokenizer
) -> None:
    thinking = ANSWER | {key: "Two and two."}
    assert refusal(CHATML, [USER, thinking]) == reasoning_lost(2)
    assert trained(thinking_minimind, [USER, thinking]) == [
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


LONG = "a rather long answer of many words\nand a second line"
CUTS = {
    "m.content[:20]": LONG,
    "m.content | truncate(20)": LONG,
    "m.content.split('\\n')[0]": LONG,
    "m.content.split('\\n')[-1]": LONG,
    "m.content[:9] + m.content[-9:]": LONG,
    "m.content.split('###')[-1]": "one ### two",
    "m.content.split('</think>')[-1]": "Sure.\n<think>T</think>A",
    "m.content | replace('$', '')": "It costs $3",
    "m.content | striptags": "a <b>tag</b>",
    "m.content | lower": "Hello",
}
KEEPS = {
    "m.content | e": "a < b, 'c'",
    "m.content | wordwrap(10)": LONG,
    "m.content | tojson": 'a "quoted"\ntext',
    "m.content | trim": "  a text \n",
    "m.content.split('</think>')[-1]": "<think>\n\n</think>\n\nA",
    "m.content": LONG,
}


@pytest.mark.parametrize("how", CUTS)
def test_a_part_of_a_content_that_is_left_out_is_refused(how: str) -> None:
    template = CHATML.replace("{{ m.content }}", f"{{{{ {how} }}}}")
    answer = {"role": "assistant", "content": CUTS[how]}
    part_lost = "message {}: the chat template leaves out a part of its content"
    assert refusal(template, [USER | {"content": "x"}, answer]) in (
        ("message_not_rendered", part_lost.format(2)),
        content_lost(2),
    )
    only_user = template.replace(
        f"{{{{ {how} }}}}", f"{{{{ {how} if loop.first else m.content }}}}"
    )
    asked = {"role": "user", "content": CUTS[how]}
    assert refusal(only_user, [asked, ANSWER])[0] == "message_not_rendered"


@pytest.mark.parametrize("how", KEEPS)
def test_a_content_that_is_written_in_another_way_is_kept(how: str) -> None:
    template = CHATML.replace("{{ m.content }}", f"{{{{ {how} }}}}")
    answer = {"role": "assistant", "content": KEEPS[how]}
    assert len(trained(load(SAMPLE_TOKENIZER, template), [USER, answer])) == 1
