"""The way in: a row of any known shape becomes a Conversation in OpenAI's shape."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from sftctl.data.tool_calls import function_calls, tool_calls, tool_list
from sftctl.errors import DataError

Format = Literal["auto", "messages", "sharegpt", "alpaca", "prompt-completion"]
Message = dict[str, Any]

_ROLES = {role: role for role in ("system", "user", "assistant", "tool")}
_SHAREGPT_ROLES = _ROLES | {
    "human": "user",
    "gpt": "assistant",
    "function_call": "assistant",
    "observation": "tool",
}


@dataclass(frozen=True, slots=True)
class SourceLine:
    """Where a row begins; lines count from 1."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages as OpenAI writes them: role, content (text), reasoning_content?, tool_calls?."""

    messages: tuple[Message, ...]
    tools: list[Any] | None
    source: SourceLine
    first_trained: int = 0  # messages before this one are context: never a target


@dataclass(frozen=True, slots=True)
class _Parsed:
    messages: list[Message]
    tools: list[Any] | None = None
    first_trained: int = 0


def from_row(row: dict[str, Any], format: Format, source: SourceLine) -> Conversation:
    """The conversation in `row`; a row of another shape is a DataError that names its line."""
    try:
        shape = detect_format(row) if format == "auto" else format
        if shape is None:
            keys = ", ".join(sorted(row)) or "none"
            known = "messages, conversations, instruction and output, prompt and completion"
            raise DataError(f"no known shape; its keys are: {keys}", f"known keys: {known}")
        parsed = _PARSERS[shape](row)
        if not parsed.messages:
            raise DataError("empty conversation", "remove the row")
    except DataError as problem:
        raise DataError(f"{source}: {problem.message}", problem.hint) from None
    return Conversation(tuple(parsed.messages), parsed.tools, source, parsed.first_trained)


def detect_format(row: dict[str, Any]) -> Format | None:
    """The shape that the keys of `row` tell; None for an unknown one."""
    if "messages" in row:
        return "messages"
    turns = row.get("conversations")
    if isinstance(turns, list):
        from_value = any(isinstance(turn, dict) and "from" in turn for turn in turns)
        return "sharegpt" if from_value else "messages"
    if "instruction" in row:
        return "alpaca"
    if "prompt" in row and "completion" in row:
        return "prompt-completion"
    return None


def _parse_messages(row: dict[str, Any]) -> _Parsed:
    turns = _objects(row, "messages" if "messages" in row else "conversations")
    # MiniMind keeps the tools in the system message.
    inner = next((turn["tools"] for turn in turns if turn.get("tools")), None)
    return _Parsed([_message(turn) for turn in turns], tool_list(row.get("tools") or inner))


def _parse_sharegpt(row: dict[str, Any]) -> _Parsed:
    turns = _objects(row, "conversations")
    messages = _system(row)
    for turn in turns:
        role, value = _role(turn.get("from"), _SHAREGPT_ROLES), _text(turn, "value")
        calls = function_calls(value) if turn["from"] == "function_call" else None
        message: Message = {"role": role, "content": value}
        messages.append(
            message if calls is None else message | {"content": "", "tool_calls": calls}
        )
    return _Parsed(messages if turns else [], tool_list(row.get("tools")))


def _parse_alpaca(row: dict[str, Any]) -> _Parsed:
    messages = _system(row)
    for pair in row.get("history") or []:
        if not (
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(t, str) for t in pair)
        ):
            raise DataError("history is not a list of [instruction, answer] pairs")
        messages += [_plain("user", pair[0]), _plain("assistant", pair[1])]
    prompt = _text(row, "instruction")
    if row.get("input"):
        prompt += "\n" + _text(row, "input")
    return _Parsed([*messages, _plain("user", prompt), _plain("assistant", _text(row, "output"))])


def _parse_prompt_completion(row: dict[str, Any]) -> _Parsed:
    sides = []
    for key, role in (("prompt", "user"), ("completion", "assistant")):
        if isinstance(row.get(key), list):
            sides.append([_message(turn) for turn in _objects(row, key)])
        else:
            sides.append([_plain(role, _text(row, key))])
    return _Parsed(sides[0] + sides[1], tool_list(row.get("tools")), first_trained=len(sides[0]))


_PARSERS: dict[str, Callable[[dict[str, Any]], _Parsed]] = {
    "messages": _parse_messages,
    "sharegpt": _parse_sharegpt,
    "alpaca": _parse_alpaca,
    "prompt-completion": _parse_prompt_completion,
}


def _plain(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _system(row: dict[str, Any]) -> list[Message]:
    return [_plain("system", _text(row, "system"))] if row.get("system") else []


def _objects(row: dict[str, Any], key: str) -> list[dict[str, Any]]:
    turns = row.get(key)
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise DataError(f"{key!r} is not a list of messages")
    return turns


def _role(name: object, known: dict[str, str]) -> str:
    if not isinstance(name, str) or name not in known:
        raise DataError(f"unknown role {name!r}", f"known roles: {', '.join(known)}")
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
            raise DataError(f"{key!r} is not text")
        texts.append(text)
    return "".join(texts)


def _message(turn: dict[str, Any]) -> Message:
    role, calls = _role(turn.get("role"), _ROLES), tool_calls(turn.get("tool_calls"))
    only_calls = calls and turn.get("content") is None
    message = _plain(role, "" if only_calls else _text(turn, "content"))
    for key in ("reasoning_content", "name", "tool_call_id"):
        if isinstance(turn.get(key), str):
            message[key] = turn[key]
    if calls:
        message["tool_calls"] = calls
    return message
