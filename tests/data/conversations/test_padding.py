"""Nulls with which Arrow pads tools and calls are removed; other nulls stay."""

import json
from typing import Any

import pytest

from sftctl.data.conversations.conversation import from_text
from tests.toys.data import HERE

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
TOWN, SUM = {"type": "string", "description": "town"}, {"type": "number", "default": None}


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def calling(arguments: object, **more: Any) -> dict[str, Any]:
    call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call]} | more


def parsed(turn: Any, tools: Any = None, from_arrow: bool = False) -> tuple[Any, Any, bool]:
    """The arguments of the call, the tools, and whether something was removed."""
    row = {"messages": [USER, turn, ANSWER], "tools": tools}
    found = from_text(json.dumps(row).encode(), "auto", HERE, from_arrow=from_arrow)
    [call] = found.messages[1]["tool_calls"]
    return call["function"]["arguments"], found.tools, found.was_padded


def test_a_row_of_arrow_loses_all_nulls() -> None:
    arguments = {"town": "Jena", "sum": None, "where": {"x": None, "y": [1, None]}}
    found = parsed(calling(arguments), [tool("weather", town=TOWN, sum=SUM)], from_arrow=True)
    clean = tool("weather", town=TOWN, sum={"type": "number"})
    assert found == ({"town": "Jena", "where": {"y": [1, None]}}, [clean], True)


@pytest.mark.parametrize(
    ("turn", "tools"),
    [
        # a parameter without a schema
        (calling({"town": "Jena", "sum": None}), [tool("weather", town=TOWN, sum=None)]),
        # a parameter that the function does not have
        (calling({"town": "Jena", "sum": None}), [tool("weather", town=TOWN)]),
        # the message has a key that only other messages have
        (calling({"town": "Jena", "sum": None}, tool_call_id=None), None),
        (calling({"town": "Jena", "a": {"b": None}}, tool_call_id=None), None),
    ],
)
def test_in_json_a_null_that_is_shown_to_be_padding_is_removed(turn: Any, tools: Any) -> None:
    arguments, found, was_padded = parsed(turn, tools)
    assert {key: value for key, value in arguments.items() if value} == {"town": "Jena"}
    assert None not in arguments.values()
    assert was_padded
    assert found is None or found == [tool("weather", town=TOWN)]


@pytest.mark.parametrize(
    ("turn", "tools"),
    [
        (calling({"town": "Jena", "sum": None}), None),
        (calling({"town": "Jena", "sum": None}), [tool("weather", town=TOWN, sum=SUM)]),
        (calling('{"town": "Jena", "sum": null}', tool_call_id=None), None),
        (calling({"town": "Jena", "sum": None}), json.dumps([tool("weather", town=TOWN, sum=SUM)])),
    ],
)
def test_a_null_that_may_be_meant_stays(turn: Any, tools: Any) -> None:
    arguments, found, was_padded = parsed(turn, tools)
    assert arguments == {"town": "Jena", "sum": None}
    assert not was_padded
    assert found in (None, [tool("weather", town=TOWN, sum=SUM)])


def test_the_legacy_call_is_cleaned_too() -> None:
    call = {"name": "weather", "arguments": {"town": "Jena", "sum": None}}
    turn = {"role": "assistant", "content": None, "function_call": call}
    assert parsed(turn, from_arrow=True) == ({"town": "Jena"}, None, True)
