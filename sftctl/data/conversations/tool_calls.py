"""Tools and tool calls in the forms that data sets use, read into OpenAI's form."""

from typing import Any

from sftctl import jsonio
from sftctl.data.ledger import BadRow

_JSON_BEGINS = ("{", "[")


def tool_list(value: object, key: str = "tools") -> list[Any] | None:
    """The tools of a row, unchanged: a list, or JSON text of one. None if there are none."""
    return _objects(value, key) or None


def wrapped(tool: Any) -> Any:
    """A bare {name, description, parameters} in the form that servers send: {"type",
    "function"}."""
    if not isinstance(tool, dict) or tool.get("type", "function") != "function":
        return tool
    if "function" in tool:
        return {"type": "function"} | tool
    if not isinstance(tool.get("name"), str):
        return tool
    bare = {key: value for key, value in tool.items() if key != "type"}  # OpenAI's Responses API
    return {"type": "function", "function": bare}


def tool_calls(value: object) -> list[dict[str, Any]]:
    """The calls of a message: a list, or JSON text of one."""
    return [_tool_call(call) for call in _objects(value, "tool_calls")]


def function_calls(value: str) -> list[dict[str, Any]] | None:
    """The calls in the text of a ShareGPT function_call; None if the text is not calls.

    BadRow if it begins like JSON and is broken: a model must not learn to write such calls.
    """
    try:
        found = jsonio.loads(value)
    except jsonio.JSONDecodeError as problem:
        if value.lstrip().startswith(_JSON_BEGINS):
            raise BadRow("bad_shape", f"a tool call is broken JSON: {problem.msg}") from None
        return None
    calls = found if isinstance(found, list) else [found]
    if not calls or not all(map(_is_call, calls)):
        return None
    read = [_tool_call(call) for call in calls]
    return read if all(isinstance(c["function"]["arguments"], dict) for c in read) else None


def _is_call(call: object) -> bool:
    function = call.get("function", call) if isinstance(call, dict) else None
    return isinstance(function, dict) and isinstance(function.get("name"), str)


def _tool_call(call: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's {"type", "function"}. Arguments written as JSON text become an object."""
    if not _is_call(call):
        raise BadRow("bad_shape", "a tool call has no function name")
    function = call.get("function", call)
    arguments = function.get("arguments")
    if arguments is None:
        arguments = {}
    elif isinstance(arguments, str):
        arguments = _object_or_text(arguments, function["name"])
    identity = {"id": call["id"]} if call.get("id") is not None else {}
    return identity | {
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }


def _object_or_text(text: str, name: str) -> dict[str, Any] | str:
    if not text.strip():
        return {}
    try:
        found = jsonio.loads(text)
    except jsonio.JSONDecodeError as problem:
        raise BadRow(
            "bad_shape",
            f"the arguments of a call of {name!r:.60} are not JSON: {problem.msg}",
            "a model must not learn to write such calls: correct the arguments, or remove the row",
        ) from None
    return found if isinstance(found, dict) else text


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
