"""Read tools and tool calls, in the forms that data sets use, into OpenAI's form."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from sftctl import jsonio
from sftctl.data.conversations.contents import is_filled
from sftctl.data.ledger import BadRow

ARGUMENTS = ("arguments", "parameters", "args", "input", "params", "kwargs")
"""Keys under which data sets put the arguments of a call."""

_JSON_BEGINS = ("{", "[")
_NAMES_A_CALL = frozenset({*ARGUMENTS, "name", "type", "id", "index", "call_id", "tool_call_id"})
CALL_KEYS = _NAMES_A_CALL.union({"function"})
"""All keys of a call that are read, or that only name it."""
_DESCRIBES = frozenset({"description", "parameters", "input_schema", "inputSchema"})
_SCHEMAS = ("input_schema", "inputSchema")  # Anthropic's and MCP's
_DECLARATIONS = ("functionDeclarations", "function_declarations")  # Gemini's
LONG_INTEGER = "an integer of more than 64 bits, which would be rounded"


def tool_list(value: object, key: str = "tools") -> list[Any] | None:
    """The tools of a row, from a list or from the JSON text of a list. None if there are no tools.

    Gemini's lists of declarations are joined to one list. Raises BadRow for other values.
    """
    found = list[Any]()
    for tool in _objects(value, key):
        inner = next(
            (tool[name] for name in _DECLARATIONS if isinstance(tool.get(name), list)), None
        )
        found += [tool] if inner is None else inner
    return found or None


def wrapped(tool: Any) -> Any:
    """A tool in the form that inference servers pass to chat templates: {"type": "function",
    "function": {name, description, parameters}}. Other forms are converted: a tool without the
    outer object, and the keys that Anthropic and MCP use instead of `parameters`."""
    if not isinstance(tool, dict) or tool.get("type", "function") not in ("function", "custom"):
        return tool
    if "function" in tool:
        return {"type": "function"} | tool | {"function": _with_parameters(tool["function"])}
    if not isinstance(tool.get("name"), str) or "format" in tool:  # OpenAI's tools without a schema
        return tool
    bare = {key: value for key, value in tool.items() if key != "type"}  # OpenAI's Responses API
    return {"type": "function", "function": _with_parameters(bare)}


def _with_parameters(function: Any) -> Any:
    """The function with its schema under `parameters`, as an object instead of JSON text."""
    if not isinstance(function, dict):
        return function
    if "parameters" not in function:
        function = {"parameters" if k in _SCHEMAS else k: v for k, v in function.items()}
    schema = function.get("parameters")
    if isinstance(schema, str) and schema.lstrip().startswith("{"):
        with suppress(jsonio.JSONDecodeError):
            function = function | {"parameters": jsonio.loads(schema)}
    return function


def refuse_tools_elsewhere(row: dict[str, Any]) -> None:
    """Raise BadRow if a column that is not read has the tools that the messages call."""
    for key, value in row.items():
        if isinstance(value, str) and value.lstrip().startswith("["):
            with suppress(jsonio.JSONDecodeError):
                value = jsonio.loads(value)
        if isinstance(value, list) and value and all(map(_is_tool, value)):
            raise BadRow(
                "bad_shape",
                f"the messages call tools that the column {key!r:.40} describes",
                f"--columns tools={key} reads it",
            )


def _is_tool(tool: object) -> bool:
    function = _function(tool)
    return function is not None and not _DESCRIBES.isdisjoint(function)


def tool_calls(value: object) -> list[dict[str, Any]]:
    """The calls of a message, from a list or from the JSON text of a list.

    Raises BadRow for other values, and for a call that can't be read.
    """
    return [_tool_call(call) for call in _objects(value, "tool_calls")]


def call_objects(value: object) -> Iterator[dict[str, Any]]:
    """The objects that make a message's calls: each call, and the `function` in it."""
    if isinstance(value, str):
        value = jsonio.loads(value) if value.strip() else None
    for call in value if isinstance(value, list) else [value]:
        if isinstance(call, dict):
            yield call
            if isinstance(inner := call.get("function"), dict):
                yield inner


def function_calls(value: str) -> list[dict[str, Any]] | None:
    """The calls in the text of a ShareGPT `function_call`. None if the text has no calls.

    Raises BadRow if the text is broken JSON, because a model must not learn to write broken calls.
    """
    try:
        found = jsonio.loads(value)
    except jsonio.JSONDecodeError as problem:
        if value.lstrip().startswith(_JSON_BEGINS):
            raise BadRow("bad_shape", f"a tool call is broken JSON: {problem.msg}") from None
        return None
    _require_exact(value, found, "a tool call")
    calls = found if isinstance(found, list) else [found]
    if not calls or any(_function(call) is None for call in calls):
        return None
    return [_tool_call(call) for call in calls]


def _function(call: object) -> dict[str, Any] | None:
    """The object with the name and the arguments of a call. None if `call` is not a call."""
    if not isinstance(call, dict):
        return None
    function = call.get("function", call)
    if isinstance(function, str):  # only the name; the arguments are next to it in `call`
        function = {key: call[key] for key in call if key != "function"} | {"name": function}
    is_named = isinstance(function, dict) and isinstance(function.get("name"), str)
    return function if is_named else None


def _tool_call(call: dict[str, Any]) -> dict[str, Any]:
    """A call in OpenAI's form. Arguments that are JSON text become an object.

    Raises BadRow if the call has no name, or if its arguments can't be read.
    """
    function = _function(call)
    if function is None:
        raise BadRow("bad_shape", "a tool call has no function name")
    arguments = _arguments(function)
    if isinstance(arguments, str):
        arguments = _decoded(arguments, function["name"])
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise BadRow(
            "bad_shape",
            f"the arguments of a call of {function['name']!r:.60} are not an object",
            'a call is {"name": …, "arguments": {…}}',
        )
    identity = {"id": call["id"]} if call.get("id") is not None else {}
    return identity | {
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }


def _arguments(function: dict[str, Any]) -> Any:
    """The arguments of a call, from any of the keys in `ARGUMENTS`.

    Raises BadRow if two keys have different values, or if only an unknown key has a value.
    """
    filled = [key for key in ARGUMENTS if function.get(key)]
    for key in filled[1:]:
        if function[key] != function[filled[0]]:
            raise BadRow(
                "bad_shape",
                f"a call of {function['name']!r:.60} has both {filled[0]!r} and {key!r}",
                "keep only the key that holds the arguments",
            )
    if filled:
        return function[filled[0]]
    for key in function.keys() - _NAMES_A_CALL:
        if is_filled(function[key]):
            raise BadRow(
                "bad_shape",
                f"a call of {function['name']!r:.60} has {key!r:.40}, but no arguments",
                'a call is {"name": …, "arguments": {…}}',
            )
    return function.get("arguments")


def _require_exact(text: str, found: Any, what: str) -> None:
    if jsonio.rounded(text, found):
        raise BadRow("bad_shape", f"{what} has {LONG_INTEGER}", "write it as text")


def _decoded(text: str, name: str) -> Any:
    """Decode arguments that are JSON text. JSON text inside JSON text is decoded too."""
    if not text.strip():
        return None
    try:
        found = jsonio.loads(text)
    except jsonio.JSONDecodeError as problem:
        raise BadRow(
            "bad_shape",
            f"the arguments of a call of {name!r:.60} are not JSON: {problem.msg}",
            "a model must not learn to write such calls: correct the arguments, or remove the row",
        ) from None
    _require_exact(text, found, f"a call of {name!r:.60}")
    is_twice = isinstance(found, str) and found.lstrip().startswith("{")
    return _decoded(found, name) if is_twice else found


def _objects(value: object, key: str) -> list[dict[str, Any]]:
    """The list of objects in `value`, which is a list or JSON text. Empty if there is no value."""
    if isinstance(value, str) and value.strip():
        text = value
        try:
            value = jsonio.loads(text)
        except jsonio.JSONDecodeError as problem:
            raise BadRow("bad_shape", f"{key!r} is not JSON: {problem.msg}") from None
        _require_exact(text, value, repr(key))
    if not value or (isinstance(value, str) and not value.strip()):
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise BadRow("bad_shape", f"{key!r} is not a list of objects")
    return value
