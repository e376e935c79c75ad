"""JSON text becomes a Conversation, or a BadRow with file, line and reason."""

from typing import Any

import pytest

from sftctl.data.conversations.conversation import from_row, from_text
from sftctl.data.ledger import BadRow, Reason
from tests.toys.data import HERE, read

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
TOOLS = [{"name": "search", "parameters": {}}]


def test_rows_with_the_same_messages_have_the_same_digest_in_every_shape() -> None:
    same: list[dict[str, Any]] = [
        {"messages": [USER, ANSWER]},
        {"messages": [USER, ANSWER | {"weight": 0}], "id": 7},
        {"instruction": "Hi", "output": "Hello"},
        {"prompt": "Hi", "completion": "Hello"},
    ]
    others: list[dict[str, Any]] = [
        {"messages": [USER]},
        {"messages": [USER, ANSWER], "tools": TOOLS},
    ]
    digests = [read(row).digest for row in same]
    assert len(set(digests)) == 1
    assert len({*digests, *(read(row).digest for row in others)}) == 3


def test_a_digest_uses_all_of_its_64_bits() -> None:
    digests = [read({"prompt": str(n), "completion": ""}).digest for n in range(64)]
    assert all(0 <= digest < 2**64 for digest in digests)
    assert max(digests) >= 2**63
    assert len({digest % 2**32 for digest in digests}) == 64


def test_target_turns_are_the_assistant_messages_that_are_not_context() -> None:
    row = {"messages": [ANSWER, USER, ANSWER | {"train": False}, USER, ANSWER]}
    assert read(row).target_turns == [0, 4]


@pytest.mark.parametrize(
    ("text", "reason", "message"),
    [
        (b'{"a": ', "broken_json", "rows.jsonl:7: broken JSON at column 7: unexpected end of data"),
        (b'{"a":\n\n NaN, }', "broken_json", "rows.jsonl:9: broken JSON at column 2: "),
        (
            b'{"prompt": "a", "completion": [NaN]}',
            "broken_json",
            "rows.jsonl:7: 'completion' has NaN or an infinite number, which JSON does not allow",
        ),
        (b'{"a": "\\ud800"}', "broken_json", "rows.jsonl:7: broken JSON at column "),
        (b"[" * 3000 + b"]" * 3000, "broken_json", "rows.jsonl:7: broken JSON at column "),
        (b'{"a":\n"\xff"}', "invalid_utf8", "rows.jsonl:8: invalid UTF-8"),
        (b"[1]", "bad_shape", "rows.jsonl:7: a row must be a JSON object, but this is a list"),
        (b"null", "bad_shape", "rows.jsonl:7: a row must be a JSON object, but this is a NoneType"),
        (b"{}", "bad_shape", "rows.jsonl:7: unknown row shape, with keys: none; a row needs "),
        (b'{"messages": []}', "empty", "rows.jsonl:7: empty conversation"),
        (
            b'{"messages": [{"role": "robot", "content": "x"}]}',
            "bad_role",
            "rows.jsonl:7: unknown role 'robot'",
        ),
        (
            b'{"tools": [{"a": %s1%s}], "messages": [{"role": "user", "content": "b"}]}'
            % (b"[" * 500, b"]" * 500),
            "bad_shape",
            "rows.jsonl:7: tools or tool calls are nested too deeply",
        ),
    ],
)
def test_text_that_is_not_a_conversation_has_a_reason(
    text: bytes, reason: Reason, message: str
) -> None:
    with pytest.raises(BadRow) as caught:
        from_text(text, "auto", HERE)
    assert caught.value.reason == reason
    assert caught.value.message.startswith(message)


@pytest.mark.parametrize("number", [b"NaN", b"-Infinity", b"1e999", b'{"a": [NaN]}'])
def test_nan_in_a_column_that_is_not_read_does_not_cost_the_row(number: bytes) -> None:
    text = b'{"score": %s, "instruction": "a", "output": "b"}' % number
    assert [message["content"] for message in from_text(text, "auto", HERE).messages] == ["a", "b"]


def test_what_json_does_not_allow_stays_refused_next_to_nan() -> None:
    for other in (b'"\\ud800"', b"[" * 2000 + b"]" * 2000):
        with pytest.raises(BadRow) as caught:
            from_text(b'{"a": NaN, "b": %s}' % other, "auto", HERE)
        assert caught.value.reason == "broken_json"


def test_long_keys_and_roles_are_shortened_in_messages() -> None:
    for row in (
        {"x" * 9999: 1} | {str(number): 1 for number in range(9999)},
        {"messages": [{"role": "x" * 9999, "content": ""}]},
    ):
        with pytest.raises(BadRow) as caught:
            read(row)
        assert len(caught.value.message) < 300


def test_the_last_value_of_a_repeated_key_counts() -> None:
    text = b'{"messages": [], "messages": [{"role": "user", "content": "Hi\\u0000"}]}'
    assert from_text(text, "auto", HERE).messages == ({"role": "user", "content": "Hi\0"},)


def test_columns_with_a_value_that_were_not_read_are_named_for_each_row() -> None:
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "Hi", "cache_control": "x"}]},
        {"role": "assistant", "content": "Hello", "refusal": "No", "output": "x"},
        {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"a": 1}, "result": 3}]},
        {"role": "assistant", "tool_calls": '[{"thought": "t", "function": {"name": "f"}}]'},
    ]
    row = {"messages": turns, "id": 0, "empty": [None], "x": {"y": None}, "train": False}
    assert read(row).left == (
        "id",
        "train",
        "messages[].content[].cache_control",
        "messages[].output",
        "messages[].refusal",
        "messages[].tool_calls[].result",
        "messages[].tool_calls[].thought",
    )
    assert read({"instruction": "Hi", "input": "", "output": "x"}).left == ()
    body = {"body": {"messages": turns[1:2], "model": "m", "n": None}, "custom_id": "x"}
    found = from_row(body, "auto", HERE, (("messages", "body.messages"),))
    assert found.left == ("custom_id", "body.model", "messages[].output", "messages[].refusal")
