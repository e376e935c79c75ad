"""Columns: read, mapped, empty next to filled ones, or a reason to refuse the row."""

from typing import Any

import pytest

from sftctl.data.conversations.column_map import parse_columns
from sftctl.data.conversations.columns import Columns
from sftctl.data.conversations.conversation import from_row
from sftctl.data.ledger import BadRow
from tests.toys.data import HERE, read

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
SYSTEM = {"role": "system", "content": "S"}
TURNS = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
EMPTY = {"instruction": "", "output": "", "prompt": None, "completion": None, "query": ""}


@pytest.mark.parametrize("key", ["system", "system_prompt"])
@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ANSWER]},
        {"conversations": [USER, ANSWER]},
        {"conversations": TURNS},
        {"instruction": "Hi", "output": "Hello"},
        {"query": "Hi", "response": "Hello"},
        {"prompt": "Hi", "completion": "Hello"},
        {"prompt": [USER], "completion": [ANSWER]},
        {"messages": [SYSTEM, USER, ANSWER]},
    ],
)
def test_a_system_column_is_put_in_front(row: dict[str, Any], key: str) -> None:
    found = read(row | {key: "S"})
    assert found.messages == (SYSTEM, USER, ANSWER)
    assert key in found.used
    assert found.target_turns == [2]
    assert found.untrained in ({0, 1}, set())


def test_a_system_column_against_a_system_message_is_refused() -> None:
    with pytest.raises(BadRow, match="the column 'system' and the system message"):
        read({"system": "other", "messages": [SYSTEM, USER, ANSWER]})


@pytest.mark.parametrize(
    "row",
    [
        EMPTY | {"messages": [USER, ANSWER]},
        EMPTY | {"conversations": TURNS, "messages": None},
        EMPTY | {"messages": [], "conversations": [USER, ANSWER]},
        EMPTY | {"messages": [], "instruction": "Hi", "output": "Hello", "input": None},
        EMPTY | {"conversations": None, "prompt": "Hi", "completion": "Hello"},
        EMPTY | {"messages": "", "query": "Hi", "response": "Hello"},
        {"messages": '[{"role": "user", "content": "Hi"}, {"role": "gpt", "content": "Hello"}]'},
        {"conversations": ' [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]'},
        {"prompt": '[{"role": "user", "content": "Hi"}]', "completion": "Hello"},
        {"messages": [USER | {"from": None, "value": None}, ANSWER | {"tool_calls": None}]},
        {"question": "Hi", "answer": "Hello"},
        {"query": "Hi", "response": "Hello", "history": []},
        {"prompt": "Hi", "response": "Hello"},
        {"conversation": [{"input": "Hi", "output": "Hello"}]},
        {"contents": [{"role": "user", "parts": [{"text": "Hi"}]}]
         + [{"role": "model", "parts": [{"text": "Hello"}]}]},
    ],
)  # fmt: skip
def test_the_filled_columns_decide(row: dict[str, Any]) -> None:
    assert read(row).messages == (USER, ANSWER)


def test_more_than_one_exchange() -> None:
    before = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    row = {"query": "Hi", "response": "Hello", "history": [["a", "b"]], "system": "S"}
    assert list(read(row).messages) == [SYSTEM, *before, USER, ANSWER]
    exchanges = [{"system": "S", "input": "a", "output": "b"}, {"input": "Hi", "output": "Hello"}]
    assert list(read({"conversation": exchanges}).messages) == [SYSTEM, *before, USER, ANSWER]
    gemini = {"systemInstruction": {"parts": [{"text": "S"}]}, "contents": [USER, ANSWER]}
    assert list(read(gemini).messages) == [SYSTEM, USER, ANSWER]


BEFORE = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
LONG = "The Elbe is a river of 1,094 kilometres."


@pytest.mark.parametrize(
    ("row", "messages", "used"),
    [
        ({"prompt": "Hi", "response": "Hello", "history": [["a", "b"]]}, (*BEFORE, USER, ANSWER),
         "history"),
        ({"prompt": [USER], "completion": "Hello", "history": '[["a", "b"]]'},
         (*BEFORE, USER, ANSWER), "history"),
        ({"prompt": "Hi", "input": "you", "output": "Hello"},
         (USER | {"content": "Hi\nyou"}, ANSWER), "input"),
        ({"prompt": "Hi", "context": "you", "completion": "Hello"},
         (USER | {"content": "Hi\nyou"}, ANSWER), "context"),
        ({"prompt": f"Hi {LONG}", "context": LONG, "completion": "Hello"},
         (USER | {"content": f"Hi {LONG}"}, ANSWER), "context"),
        ({"prompt": "Hi", "input": "", "output": "Hello"}, (USER, ANSWER), "output"),
    ],
)  # fmt: skip
def test_what_stands_next_to_a_prompt_is_read(
    row: dict[str, Any], messages: tuple[dict[str, Any], ...], used: str
) -> None:
    found = read(row)
    assert found.messages == messages
    assert used in found.used
    assert found.target_turns == [len(messages) - 1]
    assert not found.left


@pytest.mark.parametrize(
    ("row", "key"),
    [
        ({"instruction": "Answer.", "question": "How long?", "output": "x"}, "question"),
        ({"prompt": "Answer.", "query": "How long is the Elbe?", "completion": "x"}, "query"),
        ({"instruction": "Summarize.", "document": LONG, "output": "x"}, "document"),
        ({"question": "How long?", "passage": LONG, "input": "km", "answer": "x"}, "passage"),
        ({"prompt": "How long?", "article": LONG, "response": "x"}, "article"),
    ],
)
def test_a_question_in_two_columns_is_refused_and_the_hint_reads_both(
    row: dict[str, Any], key: str
) -> None:
    with pytest.raises(BadRow, match=f"the column {key!r} has text") as caught:
        read(dict(row))
    both, without = (part.split()[1] for part in str(caught.value.hint).split("; "))
    assert row[key] in from_row(dict(row), "auto", HERE, parse_columns(both)).messages[0]["content"]
    left_out = from_row(dict(row), "auto", HERE, parse_columns(without))
    assert row[key] not in left_out.messages[0]["content"]
    assert key in left_out.left


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Hi", "prompt": "### Instruction:\nHi\n### Response:", "output": "Hello"},
        {"question": "Hi", "document": "rivers.pdf", "answer": "Hello"},
        {"prompt": "Hi", "instruction": None, "query": " ", "completion": "Hello"},
    ],
)
def test_a_rendered_question_and_a_file_name_are_no_second_question(row: dict[str, Any]) -> None:
    assert read(row).messages == (USER, ANSWER)


THOUGHT = ANSWER | {"reasoning_content": "hm"}


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking", "thought"])
@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "completion": "Hello"},
        {"prompt": [USER], "completion": [ANSWER]},
        {"prompt": "Hi", "completion": "<think>hm</think>Hello"},
        {"question": "Hi", "answer": "Hello"},
        {"messages": [USER, ANSWER]},
        {"messages": [USER, THOUGHT]},
    ],
)
def test_a_reasoning_column_is_the_reasoning_of_the_answer(row: dict[str, Any], key: str) -> None:
    assert read(row | {key: "hm"}).messages == (USER, THOUGHT)
    assert key in read(row | {key: "hm"}).used
    for setting in ("on", "OFF", "high", True, 3, ["hm"]):
        found = read(row | {key: setting})
        assert key in found.left
        assert found.messages == read(row).messages
    with pytest.raises(BadRow, match="different texts"):
        read({"prompt": "Hi", "completion": "<think>no</think>Hello", key: "hm"})


def test_a_reasoning_column_with_several_answers_is_not_read() -> None:
    row = {"messages": [*BEFORE, USER, ANSWER], "reasoning": "hm"}
    assert read(row).left == ("reasoning",)
    columns = (("reasoning_content", "cot"),)
    found = from_row({"prompt": "Hi", "completion": "Hello", "cot": "hm"}, "auto", HERE, columns)
    assert found.messages == (USER, THOUGHT)


@pytest.mark.parametrize(
    "key",
    ["system_message", "sys_prompt", "System", "System Prompt", "preamble", "instructions"],
)
def test_other_names_of_a_system_prompt(key: str) -> None:
    for row in ({"messages": [USER, ANSWER]}, {"prompt": "Hi", "completion": "Hello"}):
        found = read(row | {key: "S"})
        assert found.messages == (SYSTEM, USER, ANSWER)
        assert key in found.used
    assert read({"messages": [USER, ANSWER], "instructions": ["a"]}).left == ("instructions",)


EXCHANGE = {"input": "Hi", "output": "Hello"}


@pytest.mark.parametrize(
    ("more", "answer", "weight"),
    [
        ({"train": False}, {}, 0),
        ({"output_with_loss": False}, {}, 0),
        ({"weight": 0.5}, {}, 0.5),
        ({"reasoning": "hm"}, {"reasoning_content": "hm"}, 1),
        ({"output_with_loss": True, "role": None}, {}, 1),
    ],
)
def test_the_other_keys_of_an_exchange_are_those_of_its_answer(
    more: dict[str, Any], answer: dict[str, Any], weight: float
) -> None:
    found = read({"conversation": [EXCHANGE, EXCHANGE | more]})
    assert found.messages == (USER, ANSWER, USER, ANSWER | answer)
    assert found.target_turns == ([1, 3] if weight else [1])
    assert {turn: one.message for turn, one in found.weights.items()} == (
        {3: weight} if 0 < weight < 1 else {}
    )


def test_an_exchange_hides_nothing() -> None:
    tools = [{"name": "f", "parameters": {}}]
    assert read({"conversation": [EXCHANGE | {"tools": tools}]}).tools is not None
    assert read({"conversation": [EXCHANGE | {"sep": "x"}]}).left == ("messages[].sep",)
    mixed = {"messages": [EXCHANGE, USER, ANSWER | {"thinking": "hm"}]}
    assert read(mixed).messages[-1]["reasoning_content"] == "hm"
    for more in ({"image": "x.png"}, {"content": "other"}):
        with pytest.raises(BadRow):
            read({"conversation": [EXCHANGE | more]})


def test_a_context_follows_the_question() -> None:
    for row in (
        {"instruction": "Who?", "context": "Text", "response": "Me", "category": "qa"},
        {"question": "Who?", "context": "Text", "answer": "Me"},
    ):
        assert read(row).messages[0]["content"] == "Who?\nText"


def test_an_input_without_an_instruction_is_the_prompt() -> None:
    row = {"instruction": "", "input": "Hi", "output": "Hello"}
    assert read(row).messages == (USER, ANSWER)


def test_legacy_functions_are_tools() -> None:
    functions = [{"name": "ping", "parameters": {}}]
    found = read({"messages": [USER, ANSWER], "functions": functions})
    assert found.tools == [{"type": "function", "function": function} for function in functions]
    assert found.used == ("messages", "functions")


def test_two_answers_are_refused_unless_one_has_the_shapes_own_name() -> None:
    with pytest.raises(BadRow, match="both 'response' and 'answer' are filled"):
        read({"question": "Hi", "answer": "x", "response": "y"})
    assert read({"prompt": "Hi", "completion": "Hello", "answer": "x"}).messages == (USER, ANSWER)


def test_the_first_of_two_empty_answers_is_an_empty_answer() -> None:
    empty = {"role": "assistant", "content": ""}
    for row in (
        {"question": "Hi", "response": "", "answer": ""},
        {"question": "Hi", "response": None, "answer": ""},
        {"prompt": "Hi", "response": "", "answer": ""},
        {"instruction": "", "query": "Hi", "response": "", "answer": None},
    ):
        found = read(row)
        assert found.messages == (USER, empty)
        assert ("answer" in found.used) == (row["response"] is None)


PREFERENCE: list[dict[str, Any]] = [
    {"prompt": "Hi", "chosen": "Hello", "rejected": "No"},
    {"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]},
    {"conversations": TURNS[:1], "chosen": TURNS[1], "rejected": TURNS[1]},
    {"instruction": "Hi", "input": "", "chosen": "Hello", "rejected": "No"},
    {"messages": [USER, ANSWER], "rejected_response": "No"},
    {"prompt": "Hi", "completion": "No", "label": False},
    {"prompt": "Hi", "completion": "No", "label": "False"},
    {"messages": [USER, ANSWER], "kto_tag": False},
]


@pytest.mark.parametrize("row", PREFERENCE)
def test_preference_data_is_named_in_the_error(row: dict[str, Any]) -> None:
    with pytest.raises(BadRow) as caught:
        read(row)
    assert caught.value.reason == "preference"
    assert "preference data" in caught.value.message


def test_a_good_label_and_empty_columns_of_preferences_are_kept() -> None:
    row = {"prompt": "Hi", "completion": "Hello", "label": True, "rejected": None, "chosen": ""}
    assert read(row).messages == (USER, ANSWER)


MAPPED: list[tuple[Columns, dict[str, Any]]] = [
    ((("prompt", "q"), ("completion", "a")), {"q": "Hi", "a": "Hello"}),
    ((("prompt", "q"), ("completion", "a")), {"q": "Hi", "a": "Hello", "messages": [USER]}),
    ((("messages", "dialogue"),), {"dialogue": [USER, ANSWER]}),
    ((("messages", "dialogue"),), {"dialogue": '[{"role": "user", "content": "Hi"}, '
                                               '{"role": "bot", "content": "Hello"}]'}),
    ((("messages", "body.messages"),), {"body": {"messages": [USER, ANSWER]}, "id": 1}),
    ((("completion", "chosen"),), {"prompt": "Hi", "chosen": "Hello", "rejected": "No"}),
    ((("messages", "chosen"),), {"chosen": [USER, ANSWER], "rejected": [USER]}),
    ((("completion", "response"),), {"prompt": "Hi", "response": "Hello", "answer": "x"}),
    ((("prompt", "completion"), ("completion", "prompt")), {"completion": "Hi", "prompt": "Hello"}),
]  # fmt: skip


@pytest.mark.parametrize(("columns", "row"), MAPPED)
def test_mapped_columns_are_read_under_our_keys(columns: Columns, row: dict[str, Any]) -> None:
    found = from_row(row, "auto", HERE, columns)
    assert found.messages == (USER, ANSWER)
    assert {theirs for _, theirs in columns} <= set(found.used)


def test_a_mapped_column_that_is_not_there_is_an_error_unless_rows_may_lack_it() -> None:
    with pytest.raises(BadRow, match=r"the column 'q' is missing or null \(--columns prompt=q\)"):
        from_row({"a": "Hello"}, "auto", HERE, (("prompt", "q"), ("completion", "a")))
    columns = (("system", "rules"),)
    assert from_row({"messages": [USER, ANSWER]}, "auto", HERE, columns).messages == (USER, ANSWER)
