"""The shapes of rows, and how each shape is read into messages of OpenAI's form.

docs/extending.md describes how to add a shape.
"""

import re
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sftctl.config.schema import Format
from sftctl.data.conversations.contents import text_of
from sftctl.data.conversations.marks import MARK_LISTS, Marks, context_in_column
from sftctl.data.conversations.message_list import (
    keys_left,
    parsed_turns,
    plain,
    read_message,
    turns_in,
)
from sftctl.data.conversations.parsed_row import (
    MORE,
    QUESTION,
    SYSTEM,
    TOOLS,
    ParsedRow,
    add_reasoning,
    add_system,
    add_tools,
    one_of,
    pairs,
    with_more,
)
from sftctl.data.conversations.reasoning import REASONING
from sftctl.data.ledger import BadRow

Row = dict[str, Any]

_TURNS = ("messages", "conversations", "conversation", "contents")
_ANSWER = ("output", "response", "answer", "completion")
_COMPLETION = ("completion", "response", "answer", "output")
_ALL_TURNS = frozenset(_TURNS)
_MAY_BE_TURNS = frozenset({"prompt", *_COMPLETION})
_LIST_BEGINS = frozenset("[ \t\r\n")
_LISTED_MESSAGE = re.compile(r'\s*\[\s*\{\s*"(role|content|from|value)"\s*:')


@dataclass(frozen=True, slots=True)
class Shape:
    """How rows of a shape are recognized and read."""

    needs: str  # the required keys, as text for error messages
    reads: tuple[str, ...]  # all keys that are read; other keys are ignored
    matches: Callable[[Row], bool]
    parse: Callable[[Row], ParsedRow]  # raises BadRow
    fills: tuple[tuple[str, ...], ...]  # a row needs a value under one key of each group


def detect_shape(row: Row) -> Format | None:
    """The shape of a row; None if the shape is unknown.

    The columns that have a value are compared first. If they match no shape, all columns are
    compared. The reason: a table that was joined from others has many empty columns.
    """
    filled = {key: value for key, value in row.items() if value}
    for fields in (filled, row):
        if _ALL_TURNS.isdisjoint(fields):
            keys = tuple(fields)
            if keys not in _known_keys:
                if len(_known_keys) > _MOST_KNOWN:
                    _known_keys.clear()
                _known_keys[keys] = _first_match(fields)
            shape = _known_keys[keys]
        else:  # the messages, not the keys, show whether the shape is sharegpt
            shape = _first_match(fields)
        if shape is not None:
            return shape
    return None


def _first_match(row: Row) -> Format | None:
    return next((name for name, shape in SHAPES.items() if shape.matches(row)), None)


def is_row(columns: Iterable[str]) -> bool:
    """Whether a table with these columns has rows of a known shape."""
    return (
        detect_shape({name: ["x"] if name in _ALL_TURNS else "x" for name in columns}) is not None
    )


def empty_column(
    filled: Iterable[str], empty: Collection[str], format: Format = "auto"
) -> str | None:
    """The required column of a row that is empty. None if there is none, or if the shape is
    unknown.

    `filled` and `empty` are the names of the columns with and without a value.
    """
    values = {name: ["x"] if name in _ALL_TURNS else "x" for name in filled}
    shape = detect_shape(values) if format == "auto" else format
    if shape is None:
        every = {name: ["x"] if name in _ALL_TURNS else "x" for name in empty} | values
        shape = detect_shape(every)
    if shape is None:
        return None
    for keys in SHAPES[shape].fills:
        if values.keys().isdisjoint(keys):
            return next((key for key in keys if key in empty), None)
    return None


def known_shapes() -> str:
    """The required keys of all shapes, as text for messages."""
    *needs, last = dict.fromkeys(shape.needs for shape in SHAPES.values() if shape.needs)
    return f"{', '.join(needs)}, or {last}"


def with_turns_read(row: Row) -> Row:
    """Parse lists of messages that are JSON text. Changes and returns `row`.

    Raises BadRow if the text of a list is broken JSON.
    """
    for key in _ALL_TURNS.intersection(row):
        if isinstance(row[key], str):
            row[key] = parsed_turns(row[key], key)
    for key in _MAY_BE_TURNS.intersection(row):  # may be plain text that only looks like JSON
        text = row[key]
        if isinstance(text, str) and text[:1] in _LIST_BEGINS and _LISTED_MESSAGE.match(text):
            with suppress(BadRow):
                row[key] = parsed_turns(text, key)
    return row


def _parse_messages(row: Row) -> ParsedRow:
    parsed = ParsedRow()
    key = _turns_key(row)
    turns = turns_in(row, key)
    parsed.used.append(key)
    parsed.messages = [read_message(turn, number) for number, turn in enumerate(turns, 1)]
    marks = Marks.of(turns)
    parsed.untrained, parsed.weights = marks.context, marks.weights
    parsed.left |= keys_left(turns)
    parsed.untrained |= context_in_column(row, len(turns), parsed.used)
    add_tools(parsed, row, turns)  # MiniMind's data has the tools in the system message
    if parsed.messages:
        if sum(message["role"] == "assistant" for message in parsed.messages) == 1:
            add_reasoning(parsed, row)
        add_system(parsed, row)
    return parsed


def _parse_alpaca(row: Row) -> ParsedRow:
    parsed = ParsedRow()
    question, answer = one_of(row, QUESTION, parsed), one_of(row, _ANSWER, parsed)
    for before, after in pairs(row.get("history"), parsed):
        parsed.messages += [plain("user", before), plain("assistant", after)]
    prompt = text_of(row, question)
    for key in MORE:
        if row.get(key):
            parsed.used.append(key)
            more = text_of(row, key)
            prompt = f"{prompt}\n{more}" if prompt else more
    parsed.messages += [plain("user", prompt), plain("assistant", text_of(row, answer))]
    add_reasoning(parsed, row)
    add_tools(parsed, row)
    add_system(parsed, row)
    return parsed


def _parse_prompt_completion(row: Row) -> ParsedRow:
    parsed = ParsedRow()
    prompt = one_of(row, ("prompt",), parsed)
    completion = one_of(row, _COMPLETION, parsed)
    for before, after in pairs(row.get("history"), parsed):
        parsed.messages += [plain("user", before), plain("assistant", after)]
    all_turns = list[Row]()
    for key, role in ((prompt, "user"), (completion, "assistant")):
        start = len(parsed.messages)
        if isinstance(row[key], list):
            turns = turns_in(row, key)
            all_turns += turns
            parsed.messages += [read_message(t, start + n) for n, t in enumerate(turns, 1)]
            marks = Marks.of(turns, start)
            parsed.untrained |= marks.context
            parsed.weights |= marks.weights
            parsed.left |= keys_left(turns)
        else:
            text = text_of(row, key)
            text = with_more(row, text, parsed) if key == prompt else text
            parsed.messages.append(plain(role, text))
        if key == prompt:
            parsed.untrained = set(range(len(parsed.messages)))
    if isinstance(row[completion], str) or len(row[completion]) == 1:
        add_reasoning(parsed, row)
    add_tools(parsed, row, all_turns)
    add_system(parsed, row, is_context=True)
    return parsed


def _parse_text(row: Row) -> ParsedRow:
    if "text" not in row:
        raise BadRow("bad_shape", "'text' is missing", "--columns text=NAME names its column")
    text = text_of(row, "text")
    messages = [plain("assistant", text)] if text.strip() else []
    return ParsedRow(messages, used=["text"])


def _has_turns(row: Row) -> bool:
    return any(key in row for key in _TURNS[:2]) or any(
        isinstance(row.get(key), list) for key in _TURNS[2:]
    )


def _has_turns_with_from(row: Row) -> bool:
    turns = row.get(_turns_key(row)) if _has_turns(row) else None
    return isinstance(turns, list) and any(isinstance(t, dict) and "from" in t for t in turns)


def _is_prompt_completion(row: Row) -> bool:
    return "prompt" in row and any(key in row for key in _COMPLETION)


def _is_alpaca(row: Row) -> bool:
    if "instruction" in row:
        return True
    has_question = "query" in row or "question" in row
    return has_question and "prompt" not in row and any(key in row for key in _ANSWER)


SHAPES: dict[Format, Shape] = {
    "sharegpt": Shape(
        needs="messages or conversations",
        reads=(*_TURNS, *TOOLS, *SYSTEM, *MARK_LISTS, *REASONING),
        matches=_has_turns_with_from,
        parse=_parse_messages,
        fills=(_TURNS,),
    ),
    "messages": Shape(
        needs="messages or conversations",
        reads=(*_TURNS, *TOOLS, *SYSTEM, *MARK_LISTS, *REASONING),
        matches=_has_turns,
        parse=_parse_messages,
        fills=(_TURNS,),
    ),
    "alpaca": Shape(
        needs="instruction and output",
        reads=(*QUESTION, *MORE, *_ANSWER, "history", *TOOLS, *SYSTEM, *REASONING),
        matches=_is_alpaca,
        parse=_parse_alpaca,
        fills=((*QUESTION, *MORE), _ANSWER),
    ),
    "prompt-completion": Shape(
        needs="prompt and completion",
        reads=("prompt", *_COMPLETION, *MORE, "history", *TOOLS, *SYSTEM, *REASONING),
        matches=_is_prompt_completion,
        parse=_parse_prompt_completion,
        fills=(("prompt",), _COMPLETION),
    ),
    "text": Shape(
        needs="",
        reads=("text",),
        matches=lambda row: False,  # never detected, only chosen with data.format=text
        parse=_parse_text,
        fills=(("text",),),
    ),
}
"""All shapes. A row has the first shape that matches."""

_known_keys: dict[tuple[str, ...], Format | None] = {}
"""A cache: the keys of a row -> its shape, for rows without a list of messages.

The cache stays small, because most rows of a file have the same keys.
"""

_MOST_KNOWN = 4096

ROW_KEYS = frozenset(key for shape in SHAPES.values() for key in shape.reads)
"""All keys that are read from rows."""


def _turns_key(row: Row) -> str:
    """The key that holds the messages. A key with a list that is not empty comes first, then any
    key that is in the row. If there is none: `messages`."""
    filled = (key for key in _TURNS if isinstance(row.get(key), list) and row[key])
    present = (key for key in _TURNS if key in row)
    return next(filled, None) or next(present, _TURNS[0])
