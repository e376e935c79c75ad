"""A row of no known shape: the hint says how it can be read, and that works."""

from typing import Any

import pytest

from sftctl.data.conversations.column_map import parse_columns
from sftctl.data.conversations.columns import Columns
from sftctl.data.conversations.conversation import from_row
from sftctl.data.ledger import BadRow
from tests.toys.data import HERE, read

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


def hinted(row: dict[str, Any]) -> Columns:
    """The columns in the hint of the error for a row."""
    with pytest.raises(BadRow) as caught:
        read(dict(row))
    assert caught.value.hint is not None
    flag, pairs, *_ = caught.value.hint.split()
    assert flag == "--columns"
    return parse_columns(pairs)


@pytest.mark.parametrize(
    "row",
    [
        {"input": "Hi", "output": "Hello"},
        {"problem": "Hi", "solution": "Hello", "source": "x"},
        {"Instruction": "Hi", "Output": "Hello"},
        {"Question": "Hi", "Answer": "Hello"},
        {"dialogue": [USER, ANSWER]},
        {"chat": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        {"body": {"messages": [USER, ANSWER]}, "method": "POST"},
        {"data": {"conversations": [USER, ANSWER]}},
        {"input": [USER], "output": "Hello"},
        {"input": [USER], "output": [ANSWER], "expected": ""},
        {"input": [USER], "output": ANSWER, "source": "x"},
        {"inputs": {"messages": [USER]}, "outputs": {"messages": [ANSWER]}},
        {"inputs": {"question": "Hi"}, "outputs": {"answer": "Hello"}},
        {"dialogue": [USER], "reply": "Hello"},
        {
            "model_a": "m",
            "model_b": "n",
            "conversation_a": [USER, ANSWER],
            "conversation_b": [USER],
        },
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [ANSWER]},
        {"prompt": "Hi", "chosen": [USER, ANSWER], "rejected": [USER, ANSWER]},
        {"messages": [USER], "chosen": "Hello", "rejected": "No"},
        {"conversations": [USER], "chosen": {"from": "gpt", "value": "Hello"}, "rejected": ANSWER},
        {
            "input": {"messages": [USER]},
            "preferred_output": [ANSWER],
            "non_preferred_output": [ANSWER],
        },
        {"input": "Hi", "chosen": "Hello", "rejected": "No"},
        {"messages": [ANSWER], "prompt": "Hi"},
        {"messages": [ANSWER], "input": {"messages": [USER]}},
        {"messages": [USER], "ideal": "Hello"},
    ],
)
def test_the_columns_in_the_hint_read_the_row(row: dict[str, Any]) -> None:
    assert from_row(dict(row), "auto", HERE, hinted(row)).messages == (USER, ANSWER)


def test_the_hint_keeps_earlier_turns_and_tools() -> None:
    earlier = [USER, ANSWER, USER]
    tools = [{"name": "f", "parameters": {}}]
    for row in (
        {"input": earlier, "output": "Hello"},
        {"messages": earlier, "response": "Hello"},
        {"input": {"messages": earlier, "tools": tools}, "preferred_output": [ANSWER]},
        {"inputs": {"messages": earlier, "tools": tools}, "outputs": {"messages": [ANSWER]}},
    ):
        found = from_row(dict(row), "auto", HERE, hinted(row))
        assert found.messages == (*earlier, ANSWER)
        assert found.target_turns == [3]
        assert (found.tools is not None) == ("tools" in str(row))


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"input": [USER, ANSWER, USER], "output": "x"}, (("messages", "input"),)),
        ({"prompt": "Hi", "chosen": [ANSWER], "rejected": [ANSWER]}, (("messages", "chosen"),)),
        ({"input": [USER], "ideal": ["x", "y"]}, (("messages", "input"),)),
    ],
)
def test_messages_without_the_question_or_the_answer_are_refused(
    row: dict[str, Any], columns: Columns
) -> None:
    with pytest.raises(BadRow, match="but the column '.*' is filled"):
        from_row(row, "auto", HERE, columns)


@pytest.mark.parametrize(
    ("row", "hint"),
    [
        ({"input": [USER], "ideal": ["x", "y"]}, "put the question and the answer into one list"),
        ({"text": "x"}, "--format text trains on every token of it"),
        ({"data": [{"messages": [USER]}]}, "the rows are inside an object: `jq -c '.data[]' FILE"),
        ({"a": "x", "b": 1}, "rename the keys, map them as in --columns prompt="),
    ],
)
def test_other_rows_have_another_hint(row: dict[str, Any], hint: str) -> None:
    with pytest.raises(BadRow) as caught:
        read(row)
    assert caught.value.reason == "bad_shape"
    assert caught.value.hint is not None
    assert caught.value.hint.startswith(hint)
