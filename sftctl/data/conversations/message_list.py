"""Read lists of messages, in the forms that data sets use, into OpenAI's form."""

from typing import Any

from sftctl import jsonio
from sftctl.data.conversations.contents import (
    BY_COLUMNS,
    PART_KEYS,
    Content,
    content_of,
    require_no_media,
    text_of,
    tool_result,
)
from sftctl.data.conversations.marks import MARKS
from sftctl.data.conversations.reasoning import (
    REASONING,
    REASONING_BLOCKS,
    field_reasoning,
    one_reasoning,
)
from sftctl.data.conversations.roles import PLAIN_ROLES, is_calling, role_of
from sftctl.data.conversations.tool_calls import (
    CALL_KEYS,
    call_objects,
    function_calls,
    tool_calls,
)
from sftctl.data.ledger import BadRow

Row = dict[str, Any]
Message = dict[str, Any]

_ROLE = ("role", "from")
_CONTENT = ("content", "value", "parts", "text")
_READ = frozenset(
    {
        *(*_ROLE, *_CONTENT, *REASONING, *MARKS, "tools", "functions"),
        *("name", "tool_call_id", "tool_calls", "function_call"),
    }
)
_READ_BLOCKS = _READ.union(REASONING_BLOCKS)
_PART_KEYS = PART_KEYS.union(MARKS)
_CALLS = frozenset({"tool_calls", "function_call"})
_EXCHANGE = {"system": "system", "input": "user", "output": "assistant"}
"""A key of an exchange in xtuner's form -> the role of its text."""


def plain(role: str, content: str) -> Message:
    """A message that has only a role and a text."""
    return {"role": role, "content": content}


def turns_in(row: Row, key: str) -> list[Row]:
    """The messages under a key of a row, unchanged. Raises BadRow if there are no messages."""
    if key not in row:
        raise BadRow("bad_shape", f"{key!r} is missing")
    turns = row[key]
    if not isinstance(turns, list) or any(type(turn) is not dict for turn in turns):
        raise BadRow("bad_shape", f"{key!r} is not a list of messages", BY_COLUMNS)
    if not any(map(_is_exchange, turns)):
        return turns
    return [message for turn in turns for message in _messages_of(turn)]


def parsed_turns(text: str, key: str) -> Any:
    """The list in a JSON text. Text that does not begin with `[` is returned unchanged.

    Raises BadRow if the JSON is broken.
    """
    if not text.lstrip().startswith("["):
        return text
    try:
        return jsonio.loads(text)
    except jsonio.JSONDecodeError as problem:
        raise BadRow(
            "bad_shape",
            f"{key!r} is text that is not JSON: {problem.msg}",
            "Python's repr of a list is not JSON: write the file with json.dumps",
        ) from None


def read_message(turn: Row, number: int) -> Message:
    """Message `number` of a conversation, in OpenAI's form. Raises BadRow if it can't be read."""
    if (message := _plain_message(turn)) is not None:
        return message
    require_no_media(turn, f"message {number}:")
    role_key = _filled(turn, _ROLE)
    if role_key is None:
        raise BadRow("bad_role", "'role' is missing", "a message needs a role, or from")
    name = turn[role_key]
    role = role_of(name)
    if any(role_of(turn[key]) != role for key in _ROLE if isinstance(turn.get(key), str)):
        raise BadRow("bad_role", "'role' and 'from' are different roles", "remove one of them")
    calls = _calls(turn)
    reasoning = field_reasoning(turn)
    content = _content(turn, role, has_more=bool(calls) or reasoning is not None)
    text = content.text
    if is_calling(name) and not calls:
        calls = function_calls(text) or []
        text = "" if calls else text
    reasoning, text = one_reasoning(reasoning, content.reasoning, text)
    message = plain(role, text)
    if reasoning and reasoning.strip() and role != "assistant":
        raise BadRow(
            "bad_shape",
            f"message {number} ({role}) has reasoning, but only assistant messages can have it",
            "remove the reasoning, or correct the role",
        )
    if reasoning is not None:
        message["reasoning_content"] = reasoning
    for key in ("name", "tool_call_id"):
        if isinstance(turn.get(key), str):
            message[key] = turn[key]
    if calls:
        message["tool_calls"] = calls
    return message


def _calls(turn: Row) -> list[dict[str, Any]]:
    """The calls of a message. Raises BadRow if OpenAI's older field `function_call` differs."""
    calls, legacy = tool_calls(turn.get("tool_calls")), turn.get("function_call")
    older = tool_calls([legacy]) if legacy else []
    if calls and older and older[0]["function"] not in [call["function"] for call in calls]:
        raise BadRow(
            "bad_shape",
            "'tool_calls' and 'function_call' are different calls",
            "remove one of them",
        )
    return calls or older


def _plain_message(turn: Row) -> Message | None:
    """A message that has only a role and a text, as most messages do. None for other messages."""
    if len(turn) != 2:
        return None
    name, text = turn.get("role") or turn.get("from"), turn.get("content") or turn.get("value")
    if isinstance(name, str) and name in PLAIN_ROLES and isinstance(text, str):
        return {"role": PLAIN_ROLES[name], "content": text}
    return None


def keys_left(turns: list[Row]) -> set[str]:
    """Keys of messages, of their parts and their calls that have a value but are not read, as
    `messages[].key`, `messages[].content[].key` and `messages[].tool_calls[].key`."""
    left = set[str]()
    for turn in turns:
        if len(turn) > 2:
            has_text = any(map(turn.get, REASONING))
            left |= _unread(turn, _READ if has_text else _READ_BLOCKS, "messages[].")
        for key in () if _CALLS.isdisjoint(turn) else _CALLS.intersection(turn):
            for call in call_objects(turn[key]):
                left |= _unread(call, CALL_KEYS, f"messages[].{key}[].")
        for key in _CONTENT:
            parts = turn.get(key)
            for part in parts if isinstance(parts, list) else ():
                if isinstance(part, dict) and len(part) > 2:
                    left |= _unread(part, _PART_KEYS, f"messages[].{key}[].")
    return left


def _unread(fields: Row, read: frozenset[str], where: str) -> set[str]:
    others = fields.keys() - read
    return {f"{where}{key}" for key in others if fields[key] not in (None, "", [], {})}


def _content(turn: Row, role: str, *, has_more: bool) -> Content:
    """The content of a message. `has_more`: the message has calls or reasoning, so its text may be
    missing. Otherwise a missing text raises BadRow."""
    key = _filled(turn, _CONTENT)
    if key is None:
        if has_more:
            return Content("")
        missing = next((key for key in _CONTENT if key in turn), None)
        missing = missing or ("value" if "from" in turn else "content")
        raise BadRow("bad_shape", f"{missing!r} is missing")
    if has_more and not turn[key]:
        return Content("")
    _require_one_text(turn, key)
    if role == "tool":
        return Content(tool_result(turn[key], key))
    if key == "value":  # ShareGPT's texts have no parts, so a list of strings is refused
        return Content(text_of(turn, key))
    return content_of(turn[key], key)


def _require_one_text(turn: Row, key: str) -> None:
    """Raise BadRow if another key of a message has a different text."""
    if len(turn) == 2:
        return
    for other in _CONTENT:
        value = turn.get(other)
        if other == key or not value or not isinstance(value, (str, list)) or value == turn[key]:
            continue
        if content_of(value, other) != content_of(turn[key], key):
            raise BadRow(
                "bad_shape", f"{key!r} and {other!r} are different texts", "remove one of them"
            )


def _filled(turn: Row, keys: tuple[str, ...]) -> str | None:
    """The first key whose value is not empty, or else the first key whose value is not null."""
    found = next((key for key in keys if turn.get(key)), None)
    return found or next((key for key in keys if turn.get(key) is not None), None)


def _is_exchange(turn: Row) -> bool:
    """Whether this is an exchange in xtuner's form, which has `input` and `output`, but no role."""
    return "output" in turn and _filled(turn, _ROLE) is None


def _messages_of(turn: Row) -> list[Row]:
    """The messages of an exchange. Its other keys, such as marks and reasoning, are the answer's.

    A turn that is not an exchange is returned unchanged.
    """
    if not _is_exchange(turn):
        return [turn]
    if text := next((key for key in _CONTENT if turn.get(key)), None):
        raise BadRow("bad_shape", f"a message has both 'output' and {text!r}", "remove one of them")
    messages: list[Row] = [
        {"role": role, "content": turn.get(key)}
        for key, role in _EXCHANGE.items()
        if turn.get(key) or key == "output"
    ]
    others = turn.keys() - _EXCHANGE.keys() - {*_ROLE, *_CONTENT}
    messages[-1] |= {key: turn[key] for key in turn if key in others}
    return messages
