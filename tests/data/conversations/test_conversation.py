import pytest

from sftctl.data.conversations.conversation import Conversation, from_row, from_text
from sftctl.data.conversations.shapes import detect_format
from sftctl.data.ledger import BadRow, SourceLine
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
    assert read({"prompt": [USER, ANSWER, USER], "completion": [ANSWER]}).untrained == {0, 1, 2}
    completion = [ANSWER, USER | {"weight": 0}, ANSWER | {"weight": 0}, ANSWER]
    assert read({"prompt": "Hi", "completion": completion}).untrained == {0, 2, 3}


@pytest.mark.parametrize("mark", [{"train": False}, {"weight": 0}, {"train": 0}, {"weight": 0.0}])
def test_turns_marked_by_their_author_are_context(mark):
    learned = {"train": True, "weight": 1}
    assert read({"messages": [USER, ANSWER | mark, USER, ANSWER | learned]}).untrained == {1}
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"} | mark]
    assert read({"system": "S", "conversations": turns}).untrained == {2}
    assert read({"messages": [USER, ANSWER | mark]}).messages == (USER, ANSWER)


@pytest.mark.parametrize(
    ("name", "role"),
    [("human", "user"), ("user", "user"), ("system", "system"), ("tool", "tool")]
    + [(name, "assistant") for name in ("gpt", "assistant", "chatgpt", "bing", "bard", "model")]
    + [(name, "assistant") for name in ("function_call", "tool_call")]
    + [(name, "tool") for name in ("observation", "function_response", "tool_response")],
)
def test_every_role_of_sharegpt_is_known(name, role):
    row = {"conversations": [{"from": name, "value": "x"}]}
    assert read(row).messages == ({"role": role, "content": "x"},)


def test_roles_of_openai_old_and_new_are_known():
    call = {"name": "search", "arguments": '{"q": "crepes"}'}
    turns = [
        {"role": "developer", "content": "S"},
        {"role": "assistant", "content": None, "function_call": call},
        {"role": "function", "name": "search", "content": "[1]"},
        {"role": "assistant", "content": None, "reasoning_content": "hm"},
    ]
    assert read({"messages": turns}).messages == (
        {"role": "system", "content": "S"},
        {"role": "assistant", "content": "", "tool_calls": [SEARCH]},
        {"role": "tool", "content": "[1]", "name": "search"},
        {"role": "assistant", "content": "", "reasoning_content": "hm"},
    )


def test_the_shape_of_a_row_is_told():
    assert read({"messages": [USER, ANSWER]}).shape == "messages"
    assert read({"messages": [{"from": "human", "value": "Hi"}]}).shape == "sharegpt"
    assert read({"instruction": "Hi", "output": "Hello"}).shape == "alpaca"
    assert read({"prompt": "Hi", "completion": "Hello"}).shape == "prompt-completion"


def test_rows_that_say_the_same_have_the_same_digest_whatever_their_shape():
    same = [
        {"messages": [USER, ANSWER]},
        {"messages": [USER, ANSWER | {"weight": 0}], "id": 7},
        {"instruction": "Hi", "output": "Hello"},
        {"prompt": "Hi", "completion": "Hello"},
    ]
    others = [{"messages": [USER]}, {"messages": [USER, ANSWER], "tools": TOOLS}]
    digests = [read(row).digest for row in same]
    assert len(set(digests)) == 1
    assert len({*digests, *(read(row).digest for row in others)}) == 3


@pytest.mark.parametrize(
    ("text", "reason", "message"),
    [
        (b'{"a": ', "broken_json", "rows.jsonl:7: broken JSON at column "),
        (b'{"a":\n\n NaN}', "broken_json", "rows.jsonl:9: broken JSON at column "),
        (b'{"a": "\\ud800"}', "broken_json", "rows.jsonl:7: broken JSON at column "),
        (b"[" * 3000 + b"]" * 3000, "broken_json", "rows.jsonl:7: broken JSON at column "),
        (b'{"a":\n"\xff"}', "invalid_utf8", "rows.jsonl:8: invalid UTF-8"),
        (b"[1]", "bad_shape", "rows.jsonl:7: a row must be a JSON object, this is a list"),
        (b"null", "bad_shape", "rows.jsonl:7: a row must be a JSON object, this is a NoneType"),
        (b"{}", "bad_shape", "rows.jsonl:7: no known shape; its keys are: none"),
        (b'{"messages": []}', "empty", "rows.jsonl:7: empty conversation"),
        (
            b'{"messages": [{"role": "robot", "content": "x"}]}',
            "bad_role",
            "rows.jsonl:7: unknown role 'robot'",
        ),
        (
            b'{"tools": [%s1%s], "instruction": "a", "output": "b"}' % (b"[" * 500, b"]" * 500),
            None,
            None,
        ),
        (
            b'{"tools": [{"a": %s1%s}], "messages": [{"role": "user", "content": "b"}]}'
            % (b"[" * 500, b"]" * 500),
            "bad_shape",
            "rows.jsonl:7: tools are nested too deeply",
        ),
    ],
)
def test_text_that_is_no_conversation_has_a_reason(text, reason, message):
    if reason is None:  # tools of a shape that has none are never read
        assert from_text(text, "auto", HERE).tools is None
        return
    with pytest.raises(BadRow) as caught:
        from_text(text, "auto", HERE)
    assert caught.value.reason == reason
    assert caught.value.message.startswith(message)


def test_what_a_hostile_row_holds_does_not_flood_its_message():
    for row in (
        {"x" * 9999: 1} | {str(number): 1 for number in range(9999)},
        {"messages": [{"role": "x" * 9999, "content": ""}]},
    ):
        with pytest.raises(BadRow) as caught:
            read(row)
        assert len(caught.value.message) < 200


def test_of_a_key_given_twice_the_last_counts():
    text = b'{"messages": [], "messages": [{"role": "user", "content": "Hi\\u0000"}]}'
    assert from_text(text, "auto", HERE).messages == ({"role": "user", "content": "Hi\0"},)


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
        ({"conversations": [{"from": "robot", "value": "x"}]}, "unknown role 'robot'"),
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
        (
            {"messages": [USER, ANSWER | {"weight": 0.5}]},
            "'weight' of message 2 is neither 0 nor 1",
        ),
        ({"messages": [ANSWER | {"train": "no"}]}, "'train' of message 1 is neither 0 nor 1"),
    ],
)
def test_a_row_of_no_shape_is_an_error_with_file_and_line(row, message):
    with pytest.raises(DataError) as caught:
        read(row)
    assert caught.value.message.startswith(f"rows.jsonl:7: {message}")


def test_the_hint_lists_the_known_roles():
    with pytest.raises(DataError) as caught:
        read({"conversations": [{"from": "robot", "value": "x"}]})
    assert caught.value.hint is not None
    for role in ("human", "gpt", "system", "user", "function_call", "observation", "tool"):
        assert role in caught.value.hint
