"""Text that leaves out tools or tool calls is refused."""

from typing import Any

import pytest

from sftctl.data.ledger import BadRow
from sftctl.data.masks.encode import tokenize
from sftctl.data.sample import SAMPLE_TOKENIZER
from sftctl.model.tokenizer.tokenizer import ChatTokenizer
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


def test_tool_calls_are_trained_and_tool_results_are_not(thinking_minimind: ChatTokenizer) -> None:
    call = '<tool_call>\n{"name": "search", "arguments": {"q": "crêpes"}}\n</tool_call><|im_end|>'
    assert trained(thinking_minimind, TOOL_TURNS, tools=[TOOL]) == [
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


def called(*arguments: dict[str, Any]) -> list[dict[str, Any]]:
    calls = [{"function": {"name": "add", "arguments": some}} for some in arguments]
    return [PLAIN[0], {"role": "assistant", "content": "", "tool_calls": calls}]


def writing(how: str) -> CountingTokenizer:
    calls = "{% for c in m.tool_calls %}" + how + "{% endfor %}"
    return load(SAMPLE_TOKENIZER, CHATML.replace("{{ m.content }}", "{{ m.content }}" + calls))


@pytest.mark.parametrize(
    ("how", "lost"),
    [
        ("{{ c.function.name }}", ", with all of 'add'"),
        ("{% if loop.first %}{{ c | tojson }}{% endif %}", ""),
        ("{{ c.function.name }}{{ c.function.arguments.a }}", ", with all of 'add'"),
        ("{{ c.function | tojson | truncate(50) }}", ", with all of 'add'"),
        ("add{{ c.function.arguments }}", ""),
        ("{{ c.function | tojson }}", None),
        ("{{ c.function | tojson | upper }}{{ c.function.name }}", None),
        ("{{ c.function.name }}({% for k, v in c.function.arguments | items %}{{ k }}={{ v }},"
         "{% endfor %})", None),
    ],
)  # fmt: skip
def test_a_part_of_a_call_that_is_left_out_is_refused(how: str, lost: str | None) -> None:
    turns = called({"a": 1, "b": ["x", None]}, {"a": 2, "b": ["a long text of many words"]})
    if lost is None:
        assert len(trained(writing(how), turns)) == 1
        return
    with pytest.raises(BadRow) as caught:
        trained(writing(how), turns)
    assert caught.value.reason == "tools_not_rendered"
    assert caught.value.message.endswith(CALLS_DROPPED + lost)


def test_a_tool_without_its_parameters_is_refused() -> None:
    properties = {"q": {"type": "string"}}
    tools = [{"name": "search", "parameters": {"type": "object", "properties": properties}}]
    names = WITH_TOOLS.replace("tool | tojson", "tool.function.name")
    with pytest.raises(BadRow, match="does not render the parameters of the tool 'search'"):
        trained(load(SAMPLE_TOKENIZER, names), PLAIN, tools=tools)
    first = WITH_TOOLS.replace("tools or []", "tools[:1]")
    mentioned = [{"role": "user", "content": "find it"}, PLAIN[1]]
    with pytest.raises(BadRow, match="does not render the tool 'find'"):
        trained(load(SAMPLE_TOKENIZER, first), mentioned, tools=[*tools, {"name": "find"}])
    for parameters in ({}, {"q": "string"}):
        some = [{"name": "search", "parameters": parameters}]
        assert trained(load(SAMPLE_TOKENIZER, WITH_TOOLS), PLAIN, tools=some) == ["Yes<|im_end|>"]
