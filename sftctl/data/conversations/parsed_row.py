"""The result of reading a row, and readers for columns that several row shapes share."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sftctl.data.conversations.contents import text_of
from sftctl.data.conversations.marks import TurnWeights
from sftctl.data.conversations.message_list import Message, parsed_turns, plain
from sftctl.data.conversations.tool_calls import tool_list, wrapped
from sftctl.data.ledger import BadRow

Row = dict[str, Any]

TOOLS = ("tools", "functions")
SYSTEM = ("system", "system_prompt", "systemInstruction", "system_instruction")
_ANY_TOOLS, _ANY_SYSTEM = frozenset(TOOLS), frozenset(SYSTEM)


@dataclass(slots=True)
class ParsedRow:
    """What was read from a row: messages in OpenAI's form, tools, weights, and the keys read."""

    messages: list[Message] = field(default_factory=list)
    tools: list[Any] | None = None
    untrained: set[int] = field(default_factory=set)  # numbers of messages that are only context
    weights: dict[int, TurnWeights] = field(default_factory=dict)
    """By message number. A message without an entry has weight 1."""
    used: list[str] = field(default_factory=list)
    left: set[str] = field(default_factory=set)  # unread keys of the messages


def one_of(row: Row, keys: tuple[str, ...], parsed: ParsedRow) -> str:
    """Choose one of `keys` in a row. The chosen key is returned and added to `parsed.used`.

    The first key is sftctl's own name for the column. It is chosen if it has a value. Otherwise the
    other key with a value is chosen. If no key has a value, a key with an empty text is chosen.
    Raises BadRow if the row has none of the keys. Also raises BadRow if two other keys have values.
    """
    if row.get(keys[0]):
        parsed.used.append(keys[0])
        return keys[0]
    filled = [key for key in keys if row.get(key)] or _first_empty(row, keys)
    if not filled:
        raise BadRow("bad_shape", f"{keys[0]!r} is missing")
    if len(filled) > 1 and filled[0] != keys[0]:
        raise BadRow(
            "bad_shape",
            f"both {filled[0]!r} and {filled[1]!r} are filled",
            f"say which to use: --columns {keys[0]}={filled[0]}",
        )
    parsed.used.append(filled[0])
    return filled[0]


def _first_empty(row: Row, keys: tuple[str, ...]) -> list[str]:
    """A list with the first key whose text is empty, or else with the first key in the row.

    The list is empty if the row has none of the keys.
    """
    present = [key for key in keys if key in row]
    return ([key for key in present if row[key] == ""] or present)[:1]


def _first_filled(row: Row, keys: Iterable[str]) -> str | None:
    return next((key for key in keys if row.get(key)), None)


def add_tools(parsed: ParsedRow, row: Row, turns: Iterable[Row] = ()) -> None:
    """Read the tools of a row, or of its messages. Raises BadRow if two lists of tools differ."""
    found = list[tuple[str, list[Any]]]()
    for fields in (row, *(turn for turn in turns if len(turn) > 2)):
        for key in () if _ANY_TOOLS.isdisjoint(fields) else TOOLS:
            if fields.get(key) and (tools := tool_list(fields[key], key)) is not None:
                found.append((key, tools))
                if fields is row:
                    parsed.used.append(key)
    for key, tools in found:
        if [*map(wrapped, tools)] != [*map(wrapped, found[0][1])]:
            raise BadRow(
                "bad_shape",
                f"the row has two lists of tools that differ, {found[0][0]!r} and {key!r}",
                "join them in one list",
            )
    parsed.tools = found[0][1] if found else None


def add_system(parsed: ParsedRow, row: Row, *, is_context: bool = False) -> None:
    """Insert the system column as the first message. `is_context`: do not train this message.

    Raises BadRow if the messages already have a different system prompt.
    """
    key = None if _ANY_SYSTEM.isdisjoint(row) else _first_filled(row, SYSTEM)
    if key is None:
        return
    for other in SYSTEM:
        if row.get(other) and row[other] != row[key]:
            raise BadRow(
                "bad_shape",
                f"{key!r} and {other!r} are different system prompts",
                f"remove one, or leave one out with --columns system={key}",
            )
    parsed.used.append(key)
    value = row[key]
    text = text_of(value, "parts") if isinstance(value, dict) and "parts" in value else None
    message = plain("system", text_of(row, key) if text is None else text)
    own = [other for other in parsed.messages if other["role"] == "system"]
    if own and own[0]["content"] != message["content"]:
        raise BadRow(
            "bad_shape",
            f"the column {key!r} and the system message have different texts",
            "remove one of them",
        )
    if not own:
        parsed.messages.insert(0, message)
        parsed.untrained = {index + 1 for index in parsed.untrained}
        parsed.weights = {index + 1: weights for index, weights in parsed.weights.items()}
        if is_context:
            parsed.untrained.add(0)


def pairs(history: object, parsed: ParsedRow) -> list[list[str]]:
    """The [instruction, answer] pairs in `history` of an Alpaca row. Raises BadRow for others."""
    if isinstance(history, str):
        history = parsed_turns(history, "history")
    found: list[Any] = history if isinstance(history, list) else [history] if history else []
    for pair in found:
        if not (isinstance(pair, list) and [type(text) for text in pair] == [str, str]):
            raise BadRow("bad_shape", "'history' is not a list of [instruction, answer] pairs")
    if found:
        parsed.used.append("history")
    return found
