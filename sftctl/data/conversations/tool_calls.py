"""Tools and tool calls in the forms that data sets use, read into OpenAI's form."""

from contextlib import suppress
from typing import Any

from sftctl import jsonio
from sftctl.data.ledger import BadRow


def tool_list(value: object) -> list[Any] | None:
    """The tools of a row, unchanged: a list, or JSON text of one. None if there are none."""
    return _objects(value, "tools") or None


def tool_calls(value: object) -> list[dict[str, Any]]:
    """The calls of a message: a list, or JSON text of one."""
    return [_tool_call(call) for call in _objects(value, "tool_calls")]


def function_calls(value: str) -> list[dict[str, Any]] | None:
    """The calls in the text of a ShareGPT function_call; None if the text is not calls."""
    try:
        found = jsonio.loads(value)
        calls = [_tool_call(call) for call in (found if isinstance(found, list) else [found])]
    except (jsonio.JSONDecodeError, BadRow, AttributeError):
        return None
    return calls if all(isinstance(c["function"]["arguments"], dict) for c in calls) else None


def _tool_call(call: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's {"type", "function"}. Arguments written as JSON text become an object."""
    function = call.get("function", call)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRow("bad_shape", "a tool call has no function name")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _object_or_text(arguments)
    identity = {"id": call["id"]} if "id" in call else {}
    return identity | {
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }


def _object_or_text(text: str) -> dict[str, Any] | str:
    with suppress(jsonio.JSONDecodeError):
        found = jsonio.loads(text)
        if isinstance(found, dict):
            return found
    return text


def _objects(value: object, key: str) -> list[dict[str, Any]]:
    """A list of objects, or JSON text of one; an empty list if there is nothing."""
    if isinstance(value, str) and value.strip():
        try:
            value = jsonio.loads(value)
        except jsonio.JSONDecodeError as problem:
            raise BadRow("bad_shape", f"{key!r} is not JSON: {problem.msg}") from None
    if not value or (isinstance(value, str) and not value.strip()):
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise BadRow("bad_shape", f"{key!r} is not a list of objects")
    return value
