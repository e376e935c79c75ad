"""Conversations of all kinds, to cross with chat templates."""

from typing import Any

Row = dict[str, Any]


def _says(role: str, content: str | None, **more: Any) -> Row:
    return {"role": role, "content": content} | more


def _call(name: str, arguments: Any, **more: Any) -> Row:
    return {"type": "function", "function": {"name": name, "arguments": arguments}} | more


def _tool(name: str, field: str, kind: str) -> Row:
    properties = {field: {"type": kind, "description": f"the {field}"}}
    parameters = {"type": "object", "properties": properties, "required": [field]}
    return {"name": name, "description": f"About {name}", "parameters": parameters}


def _calling(*calls: Row, content: str | None = "", **more: Any) -> Row:
    return _says("assistant", content, tool_calls=list(calls), **more)


SYSTEM, BRIEF = _says("system", "Be kind."), _says("system", "Be brief.")
ASK, MORE = _says("user", "What is 2+2?"), _says("user", "And 3+3?")
FOUR, SIX = _says("assistant", "It is 4."), _says("assistant", "That is 6.")
THINKS = [
    _says("assistant", "<think>\nTwo and two.\n</think>\n\nIt is 4."),
    _says("assistant", "<think>\nThree and three.\n</think>\n\nThat is 6."),
]
REASONS = [
    FOUR | {"reasoning_content": "Two and two."},
    SIX | {"reasoning_content": "Three and three."},
]
GO, RESULT, DONE = (
    _says("user", "Weather?"),
    _says("tool", "12 degrees"),
    _says("assistant", "It is 12."),
)
BARE = _tool("get_weather", "town", "string")
TOOL = {"type": "function", "function": BARE}
OTHER = {"type": "function", "function": _tool("convert", "amount", "number")}
WEATHER = _call("get_weather", {"town": "Jena"})
NASTY = _call("get_weather", {"town": "L'Île \"d'Yeu\" <x> & é", "near": [1, True, None]})
NINE = "abc123def"

_PLAIN: dict[str, list[Row]] = {
    "one": [ASK, FOUR],
    "system": [BRIEF, ASK, FOUR],
    "two": [ASK, FOUR, MORE, SIX],
    "system, two": [BRIEF, ASK, FOUR, MORE, SIX],
    "three": [ASK, FOUR, MORE, SIX, ASK, FOUR],
    "a question at the end": [ASK, FOUR, MORE],
    "an empty answer": [ASK, _says("assistant", "")],
    "new lines first": [ASK, _says("assistant", "\n\nIt is 4.")],
    "new lines last": [ASK, _says("assistant", "It is 4.\n\n"), MORE, SIX],
    "spaces": [_says("user", " Hi "), _says("assistant", "  Hello  "), MORE, SIX],
    "code": [ASK, _says("assistant", "```py\ndef f(x):\n\treturn x ** 2\n```")],
    "other scripts": [_says("user", "你好🤖"), _says("assistant", "🤖你好，世界👩‍👩‍👧")],
    "assistant first": [FOUR, MORE, SIX],
    "system, assistant first": [BRIEF, FOUR, MORE, SIX],
    "two questions": [ASK, MORE, FOUR],
    "two answers": [ASK, FOUR, SIX],
    "system in the middle": [ASK, FOUR, BRIEF, MORE, SIX],
    "two systems": [BRIEF, SYSTEM, ASK, FOUR],
    "an empty system": [_says("system", ""), ASK, FOUR],
    "thinking in the content": [ASK, THINKS[0]],
    "thinking in two contents": [ASK, THINKS[0], MORE, THINKS[1]],
    "reasoning": [ASK, REASONS[0]],
    "reasoning twice": [ASK, REASONS[0], MORE, REASONS[1]],
    "reasoning last": [ASK, FOUR, MORE, REASONS[1]],
    "reasoning first": [ASK, REASONS[0], MORE, SIX],
    "context": [ASK, FOUR | {"train": False}, MORE, SIX],
}
_CALLS: dict[str, list[Row]] = {
    "no call": [GO, DONE],
    "a call": [GO, _calling(WEATHER), RESULT, DONE],
    "a call without content": [GO, _calling(WEATHER, content=None), RESULT, DONE],
    "arguments as text": [GO, _calling(_call("get_weather", '{"town": "Jena"}')), RESULT, DONE],
    "ids": [GO, _calling(WEATHER | {"id": NINE}), RESULT | {"tool_call_id": NINE}, DONE],
    "long ids": [GO, _calling(WEATHER | {"id": "call_0123"}), RESULT, DONE],
    "a system and a call": [BRIEF, GO, _calling(WEATHER), RESULT, DONE],
    "text beside a call": [GO, _calling(WEATHER, content="Let me look."), RESULT, DONE],
    "reasoning and calls": [GO, _calling(WEATHER, reasoning_content="Look."), RESULT, DONE],
    "no arguments": [GO, _calling(_call("get_weather", {})), RESULT, DONE],
    "two calls": [GO, _calling(WEATHER, _call("convert", {"amount": 3.5})), RESULT, RESULT, DONE],
    "nasty arguments": [GO, _calling(NASTY), RESULT, DONE],
    "a call, then a turn": [GO, _calling(WEATHER), RESULT, DONE, MORE, SIX],
    "a call at the end": [GO, _calling(WEATHER)],
}
CONVERSATIONS: dict[str, Row] = (
    {name: {"messages": turns} for name, turns in _PLAIN.items()}
    | {name: {"messages": turns, "tools": [TOOL, OTHER]} for name, turns in _CALLS.items()}
    | {
        "a bare tool": {"messages": [GO, DONE], "tools": [BARE]},
        "a bare call": {
            "messages": [GO, _calling(WEATHER["function"]), RESULT, DONE],
            "tools": [BARE],
        },
        "prompt and completion": {"prompt": "2+2?", "completion": "4"},
    }
)
