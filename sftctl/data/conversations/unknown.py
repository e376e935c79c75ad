"""The error for a row of an unknown shape, with a hint that says how to read the row."""

from collections.abc import Sequence
from typing import Any

from sftctl.data.conversations.columns import (
    answers_to_compare,
    preference,
    preference_columns,
    refuse_other_data,
)
from sftctl.data.conversations.shapes import SHAPES, detect_shape, known_shapes
from sftctl.data.ledger import BadRow
from sftctl.errors import DataError

Row = dict[str, Any]

_QUESTIONS = ("input", "problem", "text", "user", "human", "source", "query", "question", "title")
_ANSWERS = (
    *("output", "solution", "target", "assistant", "gpt", "bot", "reply", "chosen", "code"),
    *("completion", "response", "answer"),
)
WRAP = "`jq -c '{messages: .}' FILE > rows.jsonl` puts each list of messages into a row"
_WRAP_LINES = (
    "if the file is one conversation, `jq -cs '{messages: .}' FILE > rows.jsonl` makes it a row"
)
_RENAME = (
    "rename the keys, map them as in --columns prompt=QUESTION,completion=ANSWER, or name the "
    "shape with --format"
)


def unknown_shape(row: Row, *, is_line: bool = False) -> BadRow:
    """The error for a row that no shape matches; `is_line`: the row is a line of JSON lines."""
    if answers := answers_to_compare(row):
        how = f"--columns prompt=QUESTION,completion={answers[0]} trains on one of them"
        return preference(answers, how)
    hint = _hint(row, is_line)
    if hint is None and isinstance(row.get("text"), str):
        return BadRow(
            "bad_shape",
            "the row has plain text (its key is text), not a conversation",
            "--format text trains on every token of it",
        )
    if isinstance(row.get("input_ids"), list):
        return BadRow(
            "bad_shape",
            "the row has token ids (input_ids), not text: loss masks can't be made for ids",
            "use the text that the ids were made from",
        )
    keys = ", ".join(f"{key:.40}" for key in sorted(row)[:10]) or "none"
    return BadRow(
        "bad_shape",
        f"unknown row shape, with keys: {keys}; a row needs {known_shapes()}",
        hint or _RENAME,
    )


def refuse_answer_elsewhere(row: Row, used: Sequence[str]) -> None:
    """Raise BadRow if the messages have no answer, but another column looks like an answer."""
    for key in _ANSWERS:
        value = row.get(key)
        if key not in used and isinstance(value, str) and value.strip():
            raise BadRow(
                "no_target",
                f"{used[0]!r} has no answer, but the column {key!r} is filled",
                f"--columns prompt={used[0]},completion={key} trains on it",
            )


def rows_inside(found: Row) -> str | None:
    """The jq filter that extracts the rows from an object; None if the object has no rows."""
    values = list(found.values())
    if len(values) > 1 and all(isinstance(one, dict) and detect_shape(one) for one in values):
        return ".[]"
    for key, value in found.items():
        if not _is_list_of_objects(value):
            continue
        path = _elements_of(key)
        if detect_shape(value[0]):
            return path
        for inner, row in value[0].items():
            if isinstance(row, dict) and detect_shape(row):
                return f"{path}.{inner}"
    return None


def first_list(found: Row) -> str | None:
    """The jq filter for the elements of the first list of objects; None if there is none."""
    key = next((key for key, value in found.items() if _is_list_of_objects(value)), None)
    return None if key is None else _elements_of(key)


def _elements_of(key: str) -> str:
    return f".{key}[]" if key.isidentifier() else f'.["{key}"][]'


def _is_list_of_objects(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def unknown_table(name: str, header: Sequence[str]) -> DataError:
    """The error for a table whose columns match no known shape."""
    problem = _unknown_columns(header)
    if problem.reason == "preference":
        return DataError(f"{name}: {problem.message}", problem.hint)
    shown = ", ".join(f"{cell:.40}" for cell in header[:10]) or "none"
    return DataError(
        f"{name}: a table without the columns of a known row shape; its columns: {shown}",
        f"a row needs {known_shapes()}, named in the first line; {problem.hint}",
    )


def columns_twice(name: str, column: str) -> DataError:
    """The error for a table in which two columns have the same name."""
    return DataError(
        f"{name}: two columns are called {column!r:.40}", "rename one of them in the first line"
    )


def _unknown_columns(header: Sequence[str]) -> BadRow:
    row = dict.fromkeys(header, "x")
    try:
        refuse_other_data({key: row[key] for key in preference_columns(tuple(row))})
    except BadRow as problem:
        return problem
    return unknown_shape(row)


def _hint(row: Row, is_line: bool) -> str | None:
    """A hint that says how to read such a row; None if sftctl can't guess what the row is."""
    if {"role", "from"}.intersection(row) and {"content", "value", "parts"}.intersection(row):
        how = _WRAP_LINES if is_line else WRAP
        return f"the row is a single message, not a conversation: {how}"
    if (inside := rows_inside(row)) is not None:
        return f"the rows are inside an object: `jq -c '{inside}' FILE > rows.jsonl` extracts them"
    for key, value in row.items():
        if isinstance(value, dict) and (shape := detect_shape(value)):
            first = next(k for k in SHAPES[shape].reads if k in value)
            return f"--columns {first}={key}.{first} reads the conversation in {key!r}"
        if _is_list_of_objects(value) and {"role", "from"}.intersection(value[0]):
            return f"--columns messages={key} reads these messages"
    lower = {key.lower(): key for key in row}
    if lower.keys() != row.keys() and (
        shape := detect_shape({k: row[v] for k, v in lower.items()})
    ):
        pairs = (f"{k}={v}" for k, v in lower.items() if k in SHAPES[shape].reads and k != v)
        return f"--columns {','.join(pairs)}"
    question = next((key for key in _QUESTIONS if isinstance(row.get(key), str)), None)
    answer = next((key for key in _ANSWERS if isinstance(row.get(key), str)), None)
    if question and answer:
        return f"--columns prompt={question},completion={answer} reads them as one exchange"
    return None
