"""A row of no known shape: the hint says how it can be read, and that works."""

from typing import Any

import pytest

from sftctl.data.conversations.conversation import from_row
from sftctl.data.ledger import BadRow
from tests.toys.data import HERE, read

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


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
    ],
)
def test_the_columns_in_the_hint_read_the_row(row: dict[str, Any]) -> None:
    with pytest.raises(BadRow) as caught:
        read(dict(row))
    assert caught.value.hint is not None
    flag, pairs, *_ = caught.value.hint.split()
    assert flag == "--columns"
    columns = tuple((a, b) for a, _, b in (pair.partition("=") for pair in pairs.split(",")))
    assert from_row(row, "auto", HERE, columns).messages == (USER, ANSWER)


@pytest.mark.parametrize(
    ("row", "hint"),
    [
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
