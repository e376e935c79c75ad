"""The error for a row of an unknown shape, with a hint that says how to read the row."""

from collections.abc import Sequence
from typing import Any

from sftctl.data.conversations.columns import (
    Columns,
    answers_to_compare,
    as_exchange,
    path_to,
    preference,
    preference_columns,
    refuse_other_data,
    role_in,
)
from sftctl.data.conversations.contents import is_filled
from sftctl.data.conversations.parsed_row import ParsedRow
from sftctl.data.conversations.shapes import SHAPES, detect_shape, known_shapes
from sftctl.data.ledger import BadRow
from sftctl.errors import DataError

Row = dict[str, Any]

QUESTIONS = (
    *("input", "inputs", "problem", "text", "user", "human", "source", "query", "question"),
    "title",
)
ANSWERS = (
    *("output", "solution", "target", "assistant", "gpt", "bot", "reply", "chosen", "code"),
    *("completion", "response", "answer", "outputs", "ideal", "expected", "expected_output"),
)
_ASKED = ("prompt", "question", "instruction", "query", "input", "inputs", "problem")
WRAP = "`jq -c '{messages: .}' FILE > rows.jsonl` puts each list of messages into a row"
_JOIN = "put the question and the answer into one list of messages"
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
        is_list = answers[0].lower().startswith(("conversation", "messages"))
        how = f"messages={answers[0]}" if is_list else f"prompt=QUESTION,completion={answers[0]}"
        return preference(answers, f"--columns {how} trains on one of them")
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


def refuse_half_elsewhere(row: Row, parsed: ParsedRow, columns: Columns = ()) -> None:
    """Raise BadRow if the messages lack the question or the answer, and another column has it."""
    turns = parsed.used[0]
    if turns == "prompt" or not isinstance(row.get(turns), list):
        return
    roles = [message["role"] for message in parsed.messages]
    if roles[-1] == "assistant" and "user" in roles:
        return
    theirs = dict(columns).get(turns, turns)
    others = {key: value for key, value in row.items() if key not in parsed.used}
    if roles[-1] != "assistant" and (key := _first_filled(others, ANSWERS)) is not None:
        answer = path_to(key, row[key])
        how = f"--columns prompt={theirs},completion={answer} trains on it" if answer else _JOIN
        what = "ends without an answer" if "assistant" in roles else "has no answer"
        raise BadRow("no_target", f"{theirs!r} {what}, but the column {key!r} is filled", how)
    if "user" not in roles and (key := _first_filled(others, _ASKED)) is not None:
        question = path_to(key, row[key])
        how = f"--columns {as_exchange(row, question, theirs)}" if question else _JOIN
        raise BadRow(
            "bad_shape", f"{theirs!r} has no question, but the column {key!r} is filled", how
        )


def _first_filled(row: Row, keys: Sequence[str]) -> str | None:
    filled = (key for key in keys if isinstance(row.get(key), (str, list, dict)))
    return next((key for key in filled if is_filled(row[key]) and str(row[key]).strip()), None)


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


def _two_halves(row: Row) -> str | None:
    """The hint for a question and an answer in two columns of which one has messages.

    None if the row has no such columns.
    """
    key = _first_filled(row, ANSWERS)
    if key is None:
        return None
    answer = path_to(key, row[key])
    for other, value in row.items():
        question = path_to(other, value) if other != key and not isinstance(value, str) else None
        if question is None:
            continue
        turns = value[question[len(other) + 1 :]] if isinstance(value, dict) else value
        if other in QUESTIONS or (isinstance(turns, list) and role_in(turns[-1]) != "assistant"):
            how = f"--columns {as_exchange(row, question, answer)}" if answer else None
            return f"{how} reads them as one exchange" if how else _JOIN
    text = next((one for one in QUESTIONS if isinstance(row.get(one), str)), None)
    if text and answer and not isinstance(row[key], str):
        return f"--columns prompt={text},completion={answer} reads them as one exchange"
    return None


def _hint(row: Row, is_line: bool) -> str | None:
    """A hint that says how to read such a row; None if sftctl can't guess what the row is."""
    if {"role", "from"}.intersection(row) and {"content", "value", "parts"}.intersection(row):
        how = _WRAP_LINES if is_line else WRAP
        return f"the row is a single message, not a conversation: {how}"
    if (halves := _two_halves(row)) is not None:
        return halves
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
    question = next((key for key in QUESTIONS if isinstance(row.get(key), str)), None)
    answer = next((key for key in ANSWERS if isinstance(row.get(key), str)), None)
    if question and answer:
        return f"--columns prompt={question},completion={answer} reads them as one exchange"
    return None
