"""Tools and tool calls, as lists or as JSON text, become OpenAI's."""

import json
from typing import Any

import pytest

from sftctl.data.ledger import BadRow
from tests.toys.data import read

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
SEARCH = {"type": "function", "function": {"name": "search", "arguments": {"q": "crepes"}}}
TOOLS = [{"type": "function", "function": {"name": "search", "parameters": {}}}]


def test_a_function_call_becomes_a_tool_call_and_an_observation_a_tool_message() -> None:
    row = {
        "conversations": [
            {"from": "human", "value": "Find crepes"},
            {"from": "function_call", "value": '{"name": "search", "arguments": {"q": "crepes"}}'},
            {"from": "observation", "value": "[1]"},
            {"from": "gpt", "value": "Found"},
        ],
        "tools": '[{"name": "search", "parameters": {}}]',
    }
    conversation = read(row)
    assert conversation.messages[1] == {"role": "assistant", "content": "", "tool_calls": [SEARCH]}
    assert conversation.messages[2] == {"role": "tool", "content": "[1]"}
    assert conversation.tools == TOOLS


def test_a_function_call_may_hold_several_calls() -> None:
    value = '[{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]'
    row = {"conversations": [{"from": "tool_call", "value": value}]}
    calls = read(row).messages[0]["tool_calls"]
    assert [call["function"]["name"] for call in calls] == ["f", "g"]


@pytest.mark.parametrize("value", ["search crepes", '{"query": 1}', "[1]"])
def test_a_function_call_that_is_not_a_call_in_json_stays_text(value: str) -> None:
    row = {"conversations": [{"from": "function_call", "value": value}]}
    assert read(row).messages == ({"role": "assistant", "content": value},)


def test_a_call_written_by_somebody_else_stays_text() -> None:
    value = '{"name": "search", "arguments": {}}'
    row = {"conversations": [{"from": "human", "value": value}, {"from": "gpt", "value": value}]}
    assert [message["content"] for message in read(row).messages] == [value, value]


def test_arguments_written_as_json_text_become_an_object() -> None:
    call = {"type": "function", "function": {"name": "search", "arguments": '{"q": "crepes"}'}}
    row = {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [call]}]}
    assert read(row).messages[1]["tool_calls"] == [SEARCH]


def test_a_call_keeps_its_id() -> None:
    row = {"messages": [USER, {"role": "assistant", "tool_calls": [SEARCH | {"id": "a1"}]}]}
    assert read(row).messages[1]["tool_calls"] == [SEARCH | {"id": "a1"}]


@pytest.mark.parametrize("arguments", ["[1]", '"q"', "5", [1], 5, True, '"[1]"'])
def test_arguments_that_are_not_an_object_drop_the_row(arguments: Any) -> None:
    call = {"name": "search", "arguments": arguments}
    for turn in (
        {"role": "assistant", "tool_calls": [call]},
        {"from": "function_call", "value": json.dumps(call)},
    ):
        with pytest.raises(BadRow, match="arguments of a call of 'search' are not an object"):
            read({"messages": [USER, turn]})


@pytest.mark.parametrize(
    "call",
    [
        {"function": "search", "arguments": {"q": "crepes"}},
        {"type": "function", "function": "search", "parameters": '{"q": "crepes"}'},
        {"name": "search", "arguments": {}, "input": {"q": "crepes"}},
        {"name": "search", "arguments": {"q": "crepes"}, "args": {"q": "crepes"}},
        {"function": {"name": "search", "kwargs": json.dumps('{"q": "crepes"}')}},
    ],
)
def test_other_forms_of_a_call(call: dict[str, Any]) -> None:
    for turn in (
        {"role": "assistant", "tool_calls": [call]},
        {"from": "function_call", "value": json.dumps(call)},
    ):
        assert read({"messages": [USER, turn]}).messages[1]["tool_calls"] == [SEARCH]


def test_a_call_with_two_arguments_drops_the_row() -> None:
    call = {"name": "f", "arguments": {"a": 1}, "parameters": {"a": 2}}
    with pytest.raises(BadRow, match="call of 'f' has both 'arguments' and 'parameters'"):
        read({"messages": [USER, {"role": "assistant", "tool_calls": [call]}]})


def test_minimind_rows_keep_tools_and_calls_as_json_text() -> None:
    row = {
        "conversations": [
            {"role": "system", "content": "S", "tools": '[{"name": "search", "parameters": {}}]'},
            USER,
            {
                "role": "assistant",
                "content": "",
                "reasoning_content": "hm",
                "tool_calls": '[{"name": "search", "arguments": {"q": "crepes"}}]',
            },
            {"role": "tool", "content": "[1]"},
        ]
    }
    conversation = read(row)
    assert conversation.tools == TOOLS
    assert conversation.messages[0] == {"role": "system", "content": "S"}
    assert conversation.messages[2]["tool_calls"] == [SEARCH]
    assert conversation.messages[2]["reasoning_content"] == "hm"


@pytest.mark.parametrize("tools", [None, "", " ", [], "[]"])
def test_empty_tools_are_none(tools: Any) -> None:
    assert read({"messages": [USER, ANSWER], "tools": tools}).tools is None


@pytest.mark.parametrize("arguments", ['{"a": 1', "[crepes", "{'a': 1}", "q=crepes"])
def test_arguments_that_are_not_json_drop_the_row(arguments: str) -> None:
    call = {"name": "search", "arguments": arguments}
    for turn in (
        {"role": "assistant", "tool_calls": [call]},
        {"role": "assistant", "content": None, "function_call": call},
        {"from": "function_call", "value": json.dumps(call)},
    ):
        with pytest.raises(BadRow) as caught:
            read({"messages": [USER, turn]})
        assert caught.value.reason == "bad_shape"
        assert "arguments of a call of 'search' are not JSON" in caught.value.message


def test_a_function_call_that_is_broken_json_drops_the_row() -> None:
    for value in ('{"name": "search", "arguments": {', "[{'name': 'search'}]"):
        with pytest.raises(BadRow, match="a tool call is broken JSON"):
            read({"conversations": [{"from": "function_call", "value": value}]})


@pytest.mark.parametrize("nothing", [None, "", "  ", {}])
def test_no_arguments_are_an_empty_object(nothing: Any) -> None:
    row = {"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": nothing}]}]}
    assert read(row).messages[0]["tool_calls"][0]["function"]["arguments"] == {}


@pytest.mark.parametrize(
    ("tool", "expected"),
    [
        (
            {"name": "f", "parameters": {}},
            {"type": "function", "function": {"name": "f", "parameters": {}}},
        ),
        ({"function": {"name": "f"}}, {"type": "function", "function": {"name": "f"}}),
        ({"type": "function", "function": {"name": "f"}}, None),
        (
            {"type": "function", "name": "f", "parameters": {}},
            {"type": "function", "function": {"name": "f", "parameters": {}}},
        ),
        (
            {"name": "f", "input_schema": {}},
            {"type": "function", "function": {"name": "f", "parameters": {}}},
        ),
        (
            {"type": "custom", "name": "f", "inputSchema": {}},
            {"type": "function", "function": {"name": "f", "parameters": {}}},
        ),
        (
            {"type": "function", "function": {"name": "f", "parameters": '{"type": "object"}'}},
            {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}},
        ),
        (
            {"functionDeclarations": [{"name": "f", "parameters": {}}]},
            {"type": "function", "function": {"name": "f", "parameters": {}}},
        ),
        ({"type": "custom", "name": "f", "format": {"type": "text"}}, None),
        ({"type": "web_search", "name": "f"}, None),
        ({"description": "unnamed"}, None),
    ],
)
def test_a_bare_tool_is_wrapped_as_a_server_sends_it(tool: Any, expected: Any) -> None:
    read_tools = read({"messages": [USER, ANSWER], "tools": [tool]}).tools
    assert read_tools == [tool if expected is None else expected]


def test_wrapping_keeps_the_hash_of_a_row() -> None:
    """A row with bare tools stays in its split."""
    [bare, wrapped] = (
        read({"messages": [USER, ANSWER], "tools": [tool]})
        for tool in ({"name": "f"}, {"type": "function", "function": {"name": "f"}})
    )
    assert bare.tools == wrapped.tools
    assert bare.digest != wrapped.digest


def call(name: str, **more: Any) -> dict[str, Any]:
    value = json.dumps({"name": name, "arguments": {}})
    return {"role": "tool_call", "content": value, **more}


SAYS = {"role": "assistant", "content": "Let me see."}
CALLS = {"role": "assistant", "content": None, "tool_calls": [{"name": "g", "arguments": {}}]}
RESULT = {"role": "tool", "content": "4"}


@pytest.mark.parametrize(
    ("turns", "texts", "calls"),
    [
        ([call("f"), call("g"), RESULT, RESULT, ANSWER], ["", "Hello"], [["f", "g"], []]),
        ([SAYS, call("f"), call("g"), RESULT], ["Let me see."], [["f", "g"]]),
        ([SAYS, CALLS, RESULT, call("f")], ["Let me see.", ""], [["g"], ["f"]]),
        ([ANSWER, SAYS, call("f")], ["Hello", "Let me see."], [[], ["f"]]),
        ([call("f"), SAYS], ["", "Let me see."], [["f"], []]),  # a call after a text is another
    ],
)
def test_a_call_is_one_turn_with_the_assistants_message_before_it(
    turns: list[Any], texts: list[str], calls: list[list[str]]
) -> None:
    found = [m for m in read({"messages": [USER, *turns]}).messages if m["role"] == "assistant"]
    assert [message["content"] for message in found] == texts
    names = [[one["function"]["name"] for one in m.get("tool_calls", ())] for m in found]
    assert names == calls


def test_joined_calls_keep_marks_and_reasoning() -> None:
    marked = [SAYS | {"loss": False, "reasoning": "Hm."}, call("f", loss=False), RESULT]
    last = [call("f", weight=0.5), call("g", weight=0.5)]
    row = read({"messages": [USER, *marked, USER, *last]})
    assert row.untrained == {1}
    assert row.messages[1]["reasoning_content"] == "Hm."
    assert [*row.weights] == [4]
    assert row.weights[4].message == 0.5


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([SAYS | {"train": False}, call("f")], "messages 2 and 3 .* only one of them has a mark"),
        ([SAYS, call("f", weight=0.5)], "only one of them has a mark"),
        ([SAYS | {"weight": 2}, call("f", weight=0.5)], "their weights differ"),
        ([SAYS, CALLS | {"content": "Now."}], "the second has a text"),
        ([call("f"), CALLS | {"content": "Now."}], "the second has a text"),
        ([call("f"), CALLS | {"reasoning": "Hm."}], "the second has reasoning"),
    ],
)
def test_a_turn_that_can_not_be_joined_unchanged_is_refused(turns: list[Any], message: str) -> None:
    with pytest.raises(BadRow, match=message):
        read({"messages": [USER, *turns]})


def test_a_prompt_and_a_completion_are_not_one_turn_if_the_completion_calls() -> None:
    with pytest.raises(BadRow, match="messages 2 and 3 .* only one of them has a mark"):
        read({"prompt": [USER, SAYS], "completion": [call("f")]})
