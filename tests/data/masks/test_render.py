"""Text that leaves out tools or tool calls is refused."""

from typing import Any

import pytest

from sftctl.data.ledger import BadRow
from sftctl.data.masks.encode import tokenize
from sftctl.data.sample import SAMPLE_TOKENIZER
from tests.toys.data import CHATML, CountingTokenizer, load
from tests.toys.masks import CALL, EMPTY_THINKING, TOOL_TURNS, conversation, trained

CALLS_DROPPED = "the chat template does not render tool calls"
TOOL = {"name": "search"}
PLAIN = [
    {"role": "user", "content": "Can you search?"},
    {"role": "assistant", "content": "Yes"},
]
WITH_TOOLS = "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}" + CHATML
WITH_CALLS = CHATML.replace("{{ m.content }}", "{{ m.content }}{{ (m.tool_calls or '') | tojson }}")


def test_tool_calls_are_trained_and_tool_results_are_not(minimind: CountingTokenizer) -> None:
    call = '<tool_call>\n{"name": "search", "arguments": {"q": "crêpes"}}\n</tool_call><|im_end|>'
    assert trained(minimind, TOOL_TURNS, tools=[TOOL]) == [
        EMPTY_THINKING + call,
        EMPTY_THINKING + call,
        "<think>\nhm\n</think>\n\nFound<|im_end|>",
    ]


def test_tools_that_are_not_rendered_are_refused(chatml: CountingTokenizer) -> None:
    unnamed = {"description": "a tool without a name"}
    for tools, name in (
        ([{"name": "find"}], "find"),
        ([{"type": "function", "function": {"name": "find"}}], "find"),
        ([{"name": "search"}, {"name": "find"}], "find"),
        ([unnamed], "?"),
    ):
        with pytest.raises(BadRow) as caught:
            trained(chatml, PLAIN, tools=tools)
        assert caught.value.reason == "tools_not_rendered"
        message = f"rows.jsonl:7: the chat template does not render the tool {name!r}"
        assert caught.value.message == message
    tokenizer = load(SAMPLE_TOKENIZER, WITH_TOOLS)
    assert trained(tokenizer, PLAIN, tools=[TOOL, unnamed]) == ["Yes<|im_end|>"]


def test_a_name_that_somebody_mentions_does_not_prove_that_tools_are_rendered(
    chatml: CountingTokenizer,
) -> None:
    with pytest.raises(BadRow, match="the chat template does not render the tool 'search'"):
        trained(chatml, PLAIN, tools=[TOOL])
    mentioned: list[dict[str, Any]] = [
        PLAIN[0],
        {"role": "assistant", "content": "I search", "tool_calls": [CALL]},
    ]
    with pytest.raises(BadRow, match=f"message 2: {CALLS_DROPPED}"):
        trained(chatml, mentioned)
    tokenizer = load(SAMPLE_TOKENIZER, WITH_CALLS)
    [run] = trained(tokenizer, mentioned)
    assert run.startswith("I search[{") and "crêpes" in run


def test_a_call_must_be_in_the_text_of_its_own_turn() -> None:
    """Each of two turns calls a function, and the template writes the calls of the first only."""
    template = CHATML.replace(
        "{{ m.content }}",
        "{{ m.content }}{% if loop.index0 == 1 %}{{ m.tool_calls | tojson }}{% endif %}",
    )
    calling = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    messages: list[dict[str, Any]] = [PLAIN[0], calling, PLAIN[0], calling]
    with pytest.raises(BadRow, match=f"message 4: {CALLS_DROPPED}"):
        trained(load(SAMPLE_TOKENIZER, template), messages)


def test_a_template_that_needs_the_calls_renders_them() -> None:
    """Without its calls the message is refused, so the text can't be the same without them."""
    template = CHATML.replace(
        "{{ m.content }}",
        "{% if m.role == 'assistant' and not m.tool_calls %}{{ raise_exception('no') }}{% endif %}"
        "{{ m.content }}{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}",
    )
    calling = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    messages: list[dict[str, Any]] = [PLAIN[0], calling]
    assert len(trained(load(SAMPLE_TOKENIZER, template), messages)) == 1


def test_calls_rendered_without_the_name_of_the_function_are_refused() -> None:
    template = CHATML.replace("{{ m.content }}", "{{ 'a call' if m.tool_calls else m.content }}")
    with pytest.raises(BadRow, match=f"message 2: {CALLS_DROPPED}"):
        tokenize(conversation(TOOL_TURNS[:2]), load(SAMPLE_TOKENIZER, template), "all")


def test_dropped_tool_calls_are_refused_with_train_on_all_too(chatml: CountingTokenizer) -> None:
    with pytest.raises(BadRow, match=f"message 2: {CALLS_DROPPED}"):
        tokenize(conversation(TOOL_TURNS), chatml, "all")
