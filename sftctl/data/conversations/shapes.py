"""The shapes in which conversations are found, each made OpenAI's."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sftctl.config.schema import Format
from sftctl.data.conversations.tool_calls import function_calls, tool_calls, tool_list
from sftctl.data.ledger import BadRow

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
ROW_KEYS = frozenset(
    ["messages", "conversations", "tools", "system", "instruction", "input", "output", "history"]
    + ["prompt", "completion"]
)
"""All that is read of a row; its other keys are notes of its authors."""

_TURNS = ("messages", "conversations")


@dataclass(frozen=True, slots=True)
class Shaped:
    """A row in OpenAI's shape, and which of its messages are context only."""

    messages: list[Message]
    tools: list[Any] | None = None
    untrained: set[int] = field(default_factory=set)


def detect_format(row: dict[str, Any]) -> Format | None:
    """The shape that the keys of `row` tell; None for an unknown one."""
    for key in _TURNS:
        if key in row:
            turns = row[key] if isinstance(row[key], list) else []
            from_value = any(isinstance(turn, dict) and "from" in turn for turn in turns)
            return "sharegpt" if from_value else "messages"
    if "instruction" in row:
        return "alpaca"
    if "prompt" in row and "completion" in row:
        return "prompt-completion"
    return None


def shaped(row: dict[str, Any], shape: Format) -> Shaped:
    """The row read as `shape`; BadRow where it is not one."""
    return _PARSERS[shape](row)


def _parse_messages(row: dict[str, Any]) -> Shaped:
    turns = _turns(row)
    # MiniMind keeps the tools in the system message.
    inner = next((turn["tools"] for turn in turns if turn.get("tools")), None)
    tools = tool_list(row.get("tools") or inner)
    return Shaped([_message(turn) for turn in turns], tools, _untrained(turns))


def _parse_sharegpt(row: dict[str, Any]) -> Shaped:
    turns = _turns(row)
    messages = _system(row)
    untrained = {len(messages) + index for index in _untrained(turns)}
    for turn in turns:
        name, value = turn.get("from"), _text(turn, "value")
        message = _plain(_role(name, SHAREGPT_ROLES), value)
        calls = function_calls(value) if name in ("function_call", "tool_call") else None
        messages.append(
            message if calls is None else message | {"content": "", "tool_calls": calls}
        )
    return Shaped(messages if turns else [], tool_list(row.get("tools")), untrained)


def _parse_alpaca(row: dict[str, Any]) -> Shaped:
    messages = _system(row)
    for pair in _listed(row.get("history")):
        if not (
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(t, str) for t in pair)
        ):
            raise BadRow("bad_shape", "history is not a list of [instruction, answer] pairs")
        messages += [_plain("user", pair[0]), _plain("assistant", pair[1])]
    prompt = _text(row, "instruction")
    if row.get("input"):
        prompt += "\n" + _text(row, "input")
    return Shaped([*messages, _plain("user", prompt), _plain("assistant", _text(row, "output"))])


def _parse_prompt_completion(row: dict[str, Any]) -> Shaped:
    sides, untrained = [], set()
    for key, role in (("prompt", "user"), ("completion", "assistant")):
        if isinstance(row.get(key), list):
            turns = _objects(row[key], key)
            sides.append([_message(turn) for turn in turns])
            untrained = {len(sides[0]) + index for index in _untrained(turns)}
        else:
            sides.append([_plain(role, _text(row, key))])
    prompt, completion = sides
    untrained = {index for index in untrained if index >= len(prompt)} | set(range(len(prompt)))
    return Shaped(prompt + completion, tool_list(row.get("tools")), untrained)


_PARSERS: dict[str, Callable[[dict[str, Any]], Shaped]] = {
    "messages": _parse_messages,
    "sharegpt": _parse_sharegpt,
    "alpaca": _parse_alpaca,
    "prompt-completion": _parse_prompt_completion,
}


def _plain(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _system(row: dict[str, Any]) -> list[Message]:
    return [_plain("system", _text(row, "system"))] if row.get("system") else []


def _turns(row: dict[str, Any]) -> list[dict[str, Any]]:
    key = next((key for key in _TURNS if key in row), "messages")
    return _objects(row.get(key), key)


def _objects(turns: object, key: str) -> list[dict[str, Any]]:
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise BadRow("bad_shape", f"{key!r} is not a list of messages")
    return turns


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else [value] if value else []


def _role(name: object, known: dict[str, str]) -> str:
    if not isinstance(name, str) or name not in known:
        raise BadRow("bad_role", f"unknown role {name!r:.60}", f"known roles: {', '.join(known)}")
    return known[name]


def _text(turn: dict[str, Any], key: str) -> str:
    """The text under `key`: a string, or OpenAI's list of text parts."""
    value = turn.get(key)
    if isinstance(value, str):
        return value
    texts = []
    for part in value if isinstance(value, list) else [None]:
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str):
            raise BadRow("bad_shape", f"{key!r} is not text")
        texts.append(text)
    return "".join(texts)


def _message(turn: dict[str, Any]) -> Message:
    role = _role(turn.get("role"), ROLES)
    legacy = turn.get("function_call")
    calls = tool_calls(turn.get("tool_calls") or ([legacy] if legacy else None))
    # A message may be calls or thoughts alone.
    has_more = calls or isinstance(turn.get("reasoning_content"), str)
    message = _plain(
        role, "" if has_more and turn.get("content") is None else _text(turn, "content")
    )
    for key in ("reasoning_content", "name", "tool_call_id"):
        if isinstance(turn.get(key), str):
            message[key] = turn[key]
    if calls:
        message["tool_calls"] = calls
    return message


def _untrained(turns: list[dict[str, Any]]) -> set[int]:
    """Turns whose author marked them with `train` or `weight` as not to be learned."""
    marked = set()
    for index, turn in enumerate(turns):
        for key in ("train", "weight"):
            value = turn.get(key)
            if value is not None and value not in (0, 1):
                raise BadRow("bad_shape", f"{key!r} of message {index + 1} is neither 0 nor 1")
            if value is not None and not value:
                marked.add(index)
    return marked
