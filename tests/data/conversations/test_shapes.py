"""Rows of every shape become messages of OpenAI's shape."""

from typing import Any, get_args

import pytest

from sftctl.config.schema import Format
from sftctl.data.conversations.shapes import ROW_KEYS, SHAPES, detect_shape, known_shapes
from sftctl.data.ledger import BadRow
from tests.toys.data import read
from tests.toys.docs.pages import DOCS

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
SEARCH = {"type": "function", "function": {"name": "search", "arguments": {"q": "crepes"}}}

EXAMPLES: list[tuple[Format, dict[str, Any], list[dict[str, Any]]]] = [
    ("messages", {"messages": [USER, ANSWER]}, [USER, ANSWER]),
    ("messages", {"conversations": [USER, ANSWER]}, [USER, ANSWER]),
    (
        "messages",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, ANSWER]},
        [USER, ANSWER],
    ),
    (
        "messages",
        {"messages": [{"role": "user", "content": ["H", {"text": "i"}]}, ANSWER]},
        [USER, ANSWER],
    ),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        [USER, ANSWER],
    ),
    (
        "sharegpt",
        {"messages": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        [USER, ANSWER],
    ),
    (
        "sharegpt",
        {
            "system": "Be kind",
            "conversations": [
                {"from": "user", "value": "Hi"},
                {"from": "assistant", "value": "Hello"},
            ],
        },
        [{"role": "system", "content": "Be kind"}, USER, ANSWER],
    ),
    ("alpaca", {"instruction": "Hi", "input": "", "output": "Hello"}, [USER, ANSWER]),
    (
        "alpaca",
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
    ("prompt-completion", {"prompt": "Hi", "completion": "Hello"}, [USER, ANSWER]),
    ("prompt-completion", {"prompt": [USER], "completion": [ANSWER]}, [USER, ANSWER]),
]
DOCUMENT = ("text", {"text": "The Elbe."}, [{"role": "assistant", "content": "The Elbe."}])


@pytest.mark.parametrize(("shape", "row", "messages"), EXAMPLES)
def test_every_shape_is_recognized_and_read(
    shape: Format, row: dict[str, Any], messages: list[dict[str, Any]]
) -> None:
    conversation = read(row)
    assert list(conversation.messages) == messages
    assert conversation.shape == shape
    assert set(row) <= set(SHAPES[shape].reads)
    assert {key for key in row if row[key]} <= set(conversation.used)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_of_another_shape_is_refused_if_the_format_is_given(shape: Format) -> None:
    with pytest.raises(BadRow):
        read({"id": 1}, shape)


def test_every_format_has_a_shape_an_example_and_a_place_in_the_docs() -> None:
    shapes = set(get_args(Format)) - {"auto"}
    assert shapes == set(SHAPES) == {shape for shape, _, _ in (*EXAMPLES, DOCUMENT)}
    page = next(page for page in DOCS if page.name == "data.md").read_text(encoding="utf-8")
    assert [shape for shape in shapes if f"\n**{shape}**" not in page] == []


def test_the_keys_that_are_read_are_those_of_all_shapes() -> None:
    assert {
        *("messages", "conversations", "tools", "system", "instruction", "input", "output"),
        *("history", "prompt", "completion"),
    } <= ROW_KEYS


def test_a_given_format_overrides_the_detected_shape() -> None:
    row = {"messages": [USER], "instruction": "Hi", "output": "Hello"}
    assert detect_shape(row) == "messages"
    assert list(read(row, "alpaca").messages) == [USER, ANSWER]


def test_only_the_completion_is_trained() -> None:
    assert read({"prompt": [USER, ANSWER, USER], "completion": [ANSWER]}).untrained == {0, 1, 2}
    completion = [ANSWER, USER | {"weight": 0}, ANSWER | {"weight": 0}, ANSWER]
    assert read({"prompt": "Hi", "completion": completion}).untrained == {0, 2, 3}


@pytest.mark.parametrize("mark", [{"train": False}, {"weight": 0}, {"train": 0}, {"weight": 0.0}])
def test_turns_marked_by_their_author_are_context(mark: dict[str, Any]) -> None:
    learned = {"train": True, "weight": 1}
    assert read({"messages": [USER, ANSWER | mark, USER, ANSWER | learned]}).untrained == {1}
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"} | mark]
    assert read({"system": "S", "conversations": turns}).untrained == {2}
    assert read({"messages": [USER, ANSWER | mark]}).messages == (USER, ANSWER)


@pytest.mark.parametrize(
    ("name", "role"),
    [("human", "user"), ("user", "user"), ("system", "system"), ("developer", "system")]
    + [(name, "assistant") for name in ("gpt", "assistant", "chatgpt", "bing", "bard", "model")]
    + [(name, "assistant") for name in ("function_call", "tool_call")]
    + [(name, "tool") for name in ("tool", "function", "observation")]
    + [(name, "tool") for name in ("function_response", "tool_response")],
)
def test_every_sharegpt_role_is_known(name: str, role: str) -> None:
    row = {"conversations": [{"from": name, "value": "x"}]}
    assert read(row).messages == ({"role": role, "content": "x"},)


def test_roles_of_openai_old_and_new_are_known() -> None:
    call = {"name": "search", "arguments": '{"q": "crepes"}'}
    turns = [
        {"role": "developer", "content": "S"},
        {"role": "assistant", "content": None, "function_call": call},
        {"role": "function", "name": "search", "content": "[1]"},
        {"role": "assistant", "content": None, "reasoning_content": "hm"},
        {"role": "tool", "content": "[2]", "tool_call_id": "a1"},
    ]
    assert read({"messages": turns}).messages == (
        {"role": "system", "content": "S"},
        {"role": "assistant", "content": "", "tool_calls": [SEARCH]},
        {"role": "tool", "content": "[1]", "name": "search"},
        {"role": "assistant", "content": "", "reasoning_content": "hm"},
        {"role": "tool", "content": "[2]", "tool_call_id": "a1"},
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"words": "x", "id": 1},
            f"unknown row shape, with keys: id, words; a row needs {known_shapes()}",
        ),
        ({}, "unknown row shape, with keys: none; a row needs messages or conversations, "),
        ({"prompt": "x"}, "unknown row shape, with keys: prompt; "),
        ({"messages": []}, "empty conversation"),
        ({"conversations": [], "system": "S"}, "empty conversation"),
        ({"messages": "Hi"}, "'messages' is not a list of messages"),
        ({"conversations": [["Hi"]]}, "'conversations' is not a list of messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "unknown role 'robot'"),
        ({"messages": [{"role": None, "content": "x"}]}, "'role' is missing"),
        ({"messages": [{"content": "x"}]}, "'role' is missing"),
        ({"conversations": [{"from": "robot", "value": "x"}]}, "unknown role 'robot'"),
        ({"messages": [{"role": "user", "content": None}]}, "'content' is missing"),
        ({"messages": [{"role": "user", "content": 3}]}, "'content' is not text"),
        ({"text": "x"}, "the row has plain text (its key is text), not a conversation"),
        ({"messages": [{"role": "user"}]}, "'content' is missing"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "'content' has a part of type 'image', and only text can be trained",
        ),
        ({"conversations": [{"from": "human", "value": 3}]}, "'value' is not text"),
        ({"conversations": [{"from": "human"}]}, "'value' is missing"),
        ({"instruction": "Hi"}, "'output' is missing"),
        ({"instruction": "Hi", "output": None}, "'output' is missing"),
        ({"instruction": "Hi", "output": 3}, "'output' is not text"),
        (
            {"instruction": "Hi", "output": "x", "history": ["a"]},
            "'history' is not a list of [instruction, answer] pairs",
        ),
        (
            {"instruction": "Hi", "output": "x", "history": "ab"},
            "'history' is not a list of [instruction, answer] pairs",
        ),
        (
            {"instruction": "Hi", "output": "x", "history": [["a", "b", "c"]]},
            "'history' is not a list of [instruction, answer] pairs",
        ),
        ({"messages": [USER, ANSWER], "tools": "[{"}, "'tools' is not JSON: "),
        ({"messages": [USER, ANSWER], "tools": '{"a": 1}'}, "'tools' is not a list of objects"),
        ({"messages": [USER, ANSWER], "tools": 7}, "'tools' is not a list of objects"),
        ({"messages": [USER, ANSWER], "tools": [7]}, "'tools' is not a list of objects"),
        (
            {"messages": [USER, ANSWER | {"tool_calls": [{"id": "1"}]}]},
            "a tool call has no function name",
        ),
        (
            {"messages": [USER, ANSWER | {"weight": -1}]},
            "'weight' of message 2 is not a number from 0 to 1,000,000",
        ),
        ({"messages": [ANSWER | {"train": "no"}]}, "'train' of message 1 is neither 0 nor 1"),
    ],
)
def test_a_row_that_cannot_be_read_is_an_error_with_file_and_line(
    row: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadRow) as caught:
        read(row)
    assert caught.value.message.startswith(f"rows.jsonl:7: {message}")


@pytest.mark.parametrize(
    ("format", "key"),
    [
        ("messages", "messages"),
        ("sharegpt", "messages"),
        ("alpaca", "instruction"),
        ("prompt-completion", "prompt"),
    ],
)
def test_a_given_format_names_the_key_that_is_missing(format: Format, key: str) -> None:
    with pytest.raises(BadRow) as caught:
        read({"text": "x"}, format)
    assert (caught.value.reason, caught.value.message) == (
        "bad_shape",
        f"rows.jsonl:7: {key!r} is missing",
    )


def test_a_system_prompt_without_turns_is_an_empty_conversation() -> None:
    with pytest.raises(BadRow, match="rows.jsonl:7: empty conversation"):
        read({"conversations": [], "system": "S"}, "sharegpt")


def test_a_document_is_read_if_it_is_asked_for() -> None:
    shape, row, messages = DOCUMENT
    assert list(read(row, "text").messages) == messages
    assert detect_shape(row) is None
    for empty in ("", " \n"):
        with pytest.raises(BadRow, match="empty conversation"):
            read({"text": empty}, "text")
    with pytest.raises(BadRow, match="'text' is missing"):
        read({"words": "x"}, "text")


def test_the_hint_lists_the_roles() -> None:
    for row in (
        {"conversations": [{"from": "robot", "value": "x"}]},
        {"messages": [{"role": "robot", "content": "x"}]},
    ):
        with pytest.raises(BadRow) as caught:
            read(row)
        assert caught.value.hint is not None
        for role in ("human", "gpt", "system", "user", "function_call", "observation", "tool"):
            assert role in caught.value.hint
