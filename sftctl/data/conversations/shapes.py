"""The shapes of rows, and how each is read into messages of OpenAI's shape.

docs/extending.md describes how to add one.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sftctl.config.schema import Format
from sftctl.data.conversations.tool_calls import function_calls, tool_calls, tool_list
from sftctl.data.ledger import BadRow

Row = dict[str, Any]
Message = dict[str, Any]

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
SHAREGPT_ROLES = ROLES | {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}


@dataclass(frozen=True, slots=True)
class ParsedRow:
    """A row in OpenAI's shape, and which of its messages are only context."""

    messages: list[Message]
    tools: list[Any] | None = None
    untrained: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Shape:
    """How rows of a shape are recognized and read."""

    needs: str  # the keys that such a row must have, for messages
    reads: tuple[str, ...]  # all keys that are read; others are ignored
    matches: Callable[[Row], bool]
    parse: Callable[[Row], ParsedRow]  # raises BadRow


def detect_shape(row: Row) -> Format | None:
    """The first shape that matches the row; None if none does."""
    return next((name for name, shape in SHAPES.items() if shape.matches(row)), None)


def known_shapes() -> str:
    """The keys by which shapes are recognized, as text."""
    *needs, last = dict.fromkeys(shape.needs for shape in SHAPES.values())
    return f"{', '.join(needs)}, or {last}"


def _parse_messages(row: Row) -> ParsedRow:
    turns = _turns(row)
    # MiniMind keeps the tools in the system message.
    inner = next((turn["tools"] for turn in turns if turn.get("tools")), None)
    tools = tool_list(row.get("tools") or inner)
    return ParsedRow([_message(turn) for turn in turns], tools, _untrained(turns))


def _parse_sharegpt(row: Row) -> ParsedRow:
    turns = _turns(row)
    messages = _system(row)
    untrained = {len(messages) + index for index in _untrained(turns)}
    for turn in turns:
        role, value = _role(turn, "from", SHAREGPT_ROLES), _text(turn, "value")
        message = _plain(role, value)
        if turn["from"] in ("function_call", "tool_call"):
            calls = function_calls(value)
            if calls is not None:
                message |= {"content": "", "tool_calls": calls}
        messages.append(message)
    return ParsedRow(messages if turns else [], tool_list(row.get("tools")), untrained)


def _parse_alpaca(row: Row) -> ParsedRow:
    messages = _system(row)
    for question, answer in _pairs(row.get("history")):
        messages += [_plain("user", question), _plain("assistant", answer)]
    prompt = _text(row, "instruction")
    if row.get("input"):
        prompt += "\n" + _text(row, "input")
    messages += [_plain("user", prompt), _plain("assistant", _text(row, "output"))]
    return ParsedRow(messages)


def _parse_prompt_completion(row: Row) -> ParsedRow:
    sides: list[list[Message]] = []
    untrained: set[int] = set()
    for key, role in (("prompt", "user"), ("completion", "assistant")):
        if isinstance(row.get(key), list):
            turns = _objects(row, key)
            sides.append([_message(turn) for turn in turns])
            untrained = {len(sides[0]) + index for index in _untrained(turns)}
        else:
            sides.append([_plain(role, _text(row, key))])
    prompt, completion = sides
    untrained = {index for index in untrained if index >= len(prompt)} | set(range(len(prompt)))
    return ParsedRow(prompt + completion, tool_list(row.get("tools")), untrained)


_TURNS = ("messages", "conversations")


def _has_turns(row: Row) -> bool:
    return any(key in row for key in _TURNS)


def _has_turns_with_from(row: Row) -> bool:
    turns = row.get(_turns_key(row))
    return isinstance(turns, list) and any(isinstance(t, dict) and "from" in t for t in turns)


SHAPES: dict[Format, Shape] = {
    "sharegpt": Shape(
        needs="messages or conversations",
        reads=(*_TURNS, "tools", "system"),
        matches=_has_turns_with_from,
        parse=_parse_sharegpt,
    ),
    "messages": Shape(
        needs="messages or conversations",
        reads=(*_TURNS, "tools"),
        matches=_has_turns,
        parse=_parse_messages,
    ),
    "alpaca": Shape(
        needs="instruction and output",
        reads=("instruction", "input", "output", "history", "system"),
        matches=lambda row: "instruction" in row,
        parse=_parse_alpaca,
    ),
    "prompt-completion": Shape(
        needs="prompt and completion",
        reads=("prompt", "completion", "tools"),
        matches=lambda row: "prompt" in row and "completion" in row,
        parse=_parse_prompt_completion,
    ),
}
"""In the order in which a row is compared with them."""

ROW_KEYS = frozenset(key for shape in SHAPES.values() for key in shape.reads)
"""All keys that are read from rows."""


def _plain(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _system(row: Row) -> list[Message]:
    return [_plain("system", _text(row, "system"))] if row.get("system") else []


def _turns_key(row: Row) -> str:
    return next((key for key in _TURNS if key in row), _TURNS[0])


def _turns(row: Row) -> list[Row]:
    return _objects(row, _turns_key(row))


def _objects(row: Row, key: str) -> list[Row]:
    turns = _present(row, key)
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise BadRow("bad_shape", f"{key!r} is not a list of messages")
    return turns


def _present(row: Row, key: str) -> Any:
    if key not in row:
        raise BadRow("bad_shape", f"{key!r} is missing")
    return row[key]


def _pairs(history: object) -> list[list[str]]:
    """The earlier exchanges of an Alpaca row."""
    pairs: list[Any] = history if isinstance(history, list) else [history] if history else []
    for pair in pairs:
        if not (isinstance(pair, list) and [type(text) for text in pair] == [str, str]):
            raise BadRow("bad_shape", "'history' is not a list of [instruction, answer] pairs")
    return pairs


def _role(turn: Row, key: str, known: dict[str, str]) -> str:
    name = turn.get(key)
    if not isinstance(name, str) or name not in known:
        message = f"unknown role {name!r:.60}" if key in turn else f"{key!r} is missing"
        raise BadRow("bad_role", message, f"known roles: {', '.join(known)}")
    return known[name]


def _text(turn: Row, key: str) -> str:
    """The text under `key`: a string, or OpenAI's list of text parts."""
    value = _present(turn, key)
    if isinstance(value, str):
        return value
    texts = []
    for part in value if isinstance(value, list) else [None]:
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str):
            raise BadRow("bad_shape", f"{key!r} is not text")
        texts.append(text)
    return "".join(texts)


def _message(turn: Row) -> Message:
    role = _role(turn, "role", ROLES)
    legacy = turn.get("function_call")
    calls = tool_calls(turn.get("tool_calls") or ([legacy] if legacy else None))
    # A message may consist of calls or of reasoning only.
    has_more = calls or isinstance(turn.get("reasoning_content"), str)
    is_empty = has_more and turn.get("content") is None
    message = _plain(role, "" if is_empty else _text(turn, "content"))
    for key in ("reasoning_content", "name", "tool_call_id"):
        if isinstance(turn.get(key), str):
            message[key] = turn[key]
    if calls:
        message["tool_calls"] = calls
    return message


def _untrained(turns: list[Row]) -> set[int]:
    """The turns that `train` or `weight` marks as context: rendered, but never a target."""
    marked = set()
    for index, turn in enumerate(turns):
        for key in ("train", "weight"):
            value = turn.get(key)
            if value is not None and value not in (0, 1):
                raise BadRow("bad_shape", f"{key!r} of message {index + 1} is neither 0 nor 1")
            if value is not None and not value:
                marked.add(index)
    return marked
