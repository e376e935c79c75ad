"""Remove the nulls that Arrow adds to tools and calls, so that all of them have one schema.

In an Arrow table, every tool has the parameters of all other tools, with the value null. Every call
has the arguments of all other calls, also null. JSON that was written from such a table has the
same nulls. A model that is trained on these nulls learns to write them.
"""

from collections.abc import Iterator
from typing import Any

from sftctl.data.conversations.tool_calls import ARGUMENTS

Row = dict[str, Any]

_TOOLS = ("tools", "functions")
_MEANINGFUL = frozenset({"default", "const"})  # keys of a JSON schema that may be null


def drop_padding(row: Row, *, from_arrow: bool) -> bool:
    """Remove padding from the tools and the calls of a row, in place. Returns whether there was
    padding.

    - In a row from Arrow, every null is padding. Some JSON rows show that Arrow wrote them: a
      parameter is null instead of a schema, or `_is_padded_turn` is true for a message. In such
      rows, every null is padding too.
    - In other rows, nulls of tools are padding except under `default` and `const`. Nulls of calls
      are padding if the tool does not have this parameter.
    - JSON text inside a row is never padded.
    """
    turns = list(_turns(row))
    tools = [tool for fields in (row, *turns) for key in _TOOLS for tool in _dicts(fields, key)]
    calls = [function for turn in turns for function in _called(turn)]
    if not tools and not calls:
        return False
    parameters = {name: keys for tool in tools for name, keys in _parameters(tool)}
    is_padded = from_arrow or any(map(_is_padded_turn, turns)) or any(map(_is_padded, tools))
    num_dropped = sum(_strip(tool, frozenset() if is_padded else _MEANINGFUL) for tool in tools)
    for function in calls:
        named = (function.get(key) for key in ARGUMENTS)
        arguments = next((found for found in named if isinstance(found, dict)), None)
        if arguments is None:
            continue
        known = parameters.get(str(function.get("name")))
        if is_padded:
            num_dropped += _strip(arguments, frozenset())
        elif known is not None:
            undeclared = [key for key, value in arguments.items() if value is None]
            for key in set(undeclared) - known:
                del arguments[key]
                num_dropped += 1
    return num_dropped > 0


def _turns(row: Row) -> Iterator[Row]:
    for value in row.values():
        if isinstance(value, list):
            yield from (turn for turn in value if isinstance(turn, dict))


def _dicts(fields: Row, key: str) -> Iterator[Row]:
    value = fields.get(key)
    if isinstance(value, list):
        yield from (item for item in value if isinstance(item, dict))


def _called(turn: Row) -> Iterator[Row]:
    """The functions that a message calls, each with its arguments."""
    legacy = turn.get("function_call")
    for call in (*_dicts(turn, "tool_calls"), legacy):
        if isinstance(call, dict):
            function = call.get("function")
            yield function if isinstance(function, dict) else call


def _schema(tool: Row) -> tuple[object, Row]:
    """The name of a tool, and the properties of its parameters."""
    function = tool.get("function")
    function = function if isinstance(function, dict) else tool
    parameters = function.get("parameters")
    properties = parameters.get("properties") if isinstance(parameters, dict) else None
    return function.get("name"), properties if isinstance(properties, dict) else {}


def _parameters(tool: Row) -> Iterator[tuple[str, set[str]]]:
    name, properties = _schema(tool)
    if isinstance(name, str) and properties:
        yield name, {key for key, value in properties.items() if value is not None}


def _is_padded(tool: Row) -> bool:
    return None in _schema(tool)[1].values()


def _is_padded_turn(turn: Row) -> bool:
    """Whether a message has a null under a key that only messages of other roles have."""
    role = turn.get("role")
    key = "tool_call_id" if role == "assistant" else "tool_calls"
    return isinstance(role, str) and key in turn and turn[key] is None


def _strip(value: object, kept: frozenset[str]) -> int:
    """Remove keys with the value null at every depth, except the keys `kept`. Returns how many."""
    if isinstance(value, list):
        return sum(_strip(item, kept) for item in value)
    if not isinstance(value, dict):
        return 0
    nulls = [key for key, inner in value.items() if inner is None and key not in kept]
    for key in nulls:
        del value[key]
    return len(nulls) + sum(_strip(inner, kept) for inner in value.values())
