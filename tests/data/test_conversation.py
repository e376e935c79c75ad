import pytest

from sftctl.data.conversation import Conversation, SourceLine, detect_format, from_row
from sftctl.errors import DataError

HERE = SourceLine("rows.jsonl", 7)
USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
SEARCH = {"type": "function", "function": {"name": "search", "arguments": {"q": "crepes"}}}
TOOLS = [{"name": "search", "parameters": {}}]


def read(row, format="auto") -> Conversation:
    return from_row(row, format, HERE)


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"messages": [USER, ANSWER]}, [USER, ANSWER]),
        ({"conversations": [USER, ANSWER]}, [USER, ANSWER]),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, ANSWER]},
            [USER, ANSWER],
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "Hi"},
                    {"from": "gpt", "value": "Hello"},
                ]
            },
            [USER, ANSWER],
        ),
        (
            {
                "system": "Be kind",
                "conversations": [
                    {"from": "user", "value": "Hi"},
                    {"from": "assistant", "value": "Hello"},
                ],
            },
            [{"role": "system", "content": "Be kind"}, USER, ANSWER],
        ),
        ({"instruction": "Hi", "input": "", "output": "Hello"}, [USER, ANSWER]),
        (
            {
                "instruction": "Add",
                "input": "1 2",
                "output": "3",
                "system": "S",
                "history": [["a", "b"]],
            },
            [
                {"role": "system", "content": "S"},
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b"},
                {"role": "user", "content": "Add\n1 2"},
                {"role": "assistant", "content": "3"},
            ],
        ),
        ({"prompt": "Hi", "completion": "Hello"}, [USER, ANSWER]),
        ({"prompt": [USER], "completion": [ANSWER]}, [USER, ANSWER]),
    ],
)
def test_every_shape_becomes_openais(row, messages):
    assert list(read(row).messages) == messages


def test_a_function_call_becomes_a_tool_call_and_an_observation_a_tool_message():
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


@pytest.mark.parametrize(
    "value", ["search crepes", '{"query": 1}', "[1]", '{"name": "f", "arguments": 3}']
)
def test_a_function_call_that_is_no_such_json_stays_text(value):
    row = {"conversations": [{"from": "function_call", "value": value}]}
    assert read(row).messages == ({"role": "assistant", "content": value},)


def test_arguments_written_as_json_text_become_an_object():
    call = {"type": "function", "function": {"name": "search", "arguments": '{"q": "crepes"}'}}
    row = {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [call]}]}
    assert read(row).messages[1]["tool_calls"] == [SEARCH]


def test_arguments_that_are_other_text_stay_text():
    call = {"name": "search", "arguments": "[crepes"}
    row = {"messages": [USER, {"role": "assistant", "tool_calls": [call]}]}
    function = {"name": "search", "arguments": "[crepes"}
    assert read(row).messages[1]["tool_calls"] == [{"type": "function", "function": function}]


def test_minimind_rows_keep_tools_and_calls_as_json_text():
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
def test_no_tools_are_none(tools):
    assert read({"messages": [USER, ANSWER], "tools": tools}).tools is None


def test_only_the_completion_is_trained_of_prompt_and_completion():
    assert read({"prompt": [USER, ANSWER, USER], "completion": [ANSWER]}).first_trained == 3


def test_a_given_format_overrides_the_detected_one():
    row = {"messages": [USER], "instruction": "Hi", "output": "Hello"}
    assert detect_format(row) == "messages"
    assert list(read(row, "alpaca").messages) == [USER, ANSWER]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x", "id": 1}, "no known shape; its keys are: id, text"),
        ({}, "no known shape; its keys are: none"),
        ({"messages": []}, "empty conversation"),
        ({"conversations": [], "system": "S"}, "empty conversation"),
        ({"messages": "Hi"}, "'messages' is not a list of messages"),
        ({"conversations": [["Hi"]]}, "'conversations' is not a list of messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "unknown role 'robot'"),
        ({"messages": [{"content": "x"}]}, "unknown role None"),
        ({"conversations": [{"from": "bing", "value": "x"}]}, "unknown role 'bing'"),
        ({"messages": [{"role": "user", "content": None}]}, "'content' is not text"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "'content' is not text"),
        ({"conversations": [{"from": "human", "value": 3}]}, "'value' is not text"),
        ({"instruction": "Hi"}, "'output' is not text"),
        (
            {"instruction": "Hi", "output": "x", "history": ["a"]},
            "history is not a list of [instruction, answer] pairs",
        ),
        (
            {"instruction": "Hi", "output": "x", "history": "ab"},
            "history is not a list of [instruction, answer] pairs",
        ),
        ({"messages": [USER, ANSWER], "tools": "[{"}, "'tools' is not JSON: "),
        ({"messages": [USER, ANSWER], "tools": '{"a": 1}'}, "'tools' is not a list of objects"),
        (
            {"messages": [USER, ANSWER | {"tool_calls": [{"id": "1"}]}]},
            "a tool call has no function name",
        ),
    ],
)
def test_a_row_of_no_shape_is_an_error_with_file_and_line(row, message):
    with pytest.raises(DataError) as caught:
        read(row)
    assert caught.value.message.startswith(f"rows.jsonl:7: {message}")


def test_the_hint_lists_the_known_roles():
    with pytest.raises(DataError) as caught:
        read({"conversations": [{"from": "bing", "value": "x"}]})
    assert caught.value.hint is not None
    for role in ("human", "gpt", "system", "user", "function_call", "observation", "tool"):
        assert role in caught.value.hint
