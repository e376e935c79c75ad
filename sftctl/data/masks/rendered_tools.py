"""Refuse a row if the chat template leaves out a tool or a tool call, or a part of them.

A message may mention the name of a tool. So a name in the text is not proof. Instead, the
conversation is rendered again with marks in the names, the parameters and the arguments. If a mark
is missing, the row is rendered with only this mark. If the text does not change, the template
leaves this part out.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from sftctl.data.conversations.conversation import Conversation
from sftctl.data.ledger import BadRow
from sftctl.data.masks.render import render
from sftctl.model.tokenizer.tokenizer import ChatTokenizer

_PROPERTY = {"type": "string"}


@dataclass(slots=True)
class _Marks:
    """Makes marks. They have only letters and digits, because templates never escape these.

    `only`: the number of the single mark to make; None: make all marks.
    """

    stem: str
    only: int | None = None
    errors: list[Callable[[], BadRow]] = field(default_factory=list)
    """By mark: the error if the mark is not in the text."""

    def next(self, error: Callable[[], BadRow]) -> str:
        """The next mark, or an empty text if `only` is another number."""
        self.errors.append(error)
        number = len(self.errors) - 1
        return self.text(number) if self.only in (None, number) else ""

    def text(self, number: int) -> str:
        return f"x{self.stem}n{number}x"


def require_tools(row: Conversation, tokenizer: ChatTokenizer, text: str) -> None:
    """Raise BadRow if the template leaves out tools, tool calls, or parts of them. `text`: the
    rendered row.

    Many templates drop tools silently. The model would then learn to call tools that the prompt
    does not describe. Or it would learn to write an empty answer in place of a call.
    """
    for tool in row.tools or ():
        if (name := _name(tool)) is not None and name not in text:
            raise _tool_not_rendered(row, name)
    require_tool_calls(row, range(len(row.messages)), text)
    marks = _Marks(f"{row.digest:x}")
    marked = _marked(row, marks)
    if not marks.errors:
        if row.tools and _text(replace(row, tools=None), tokenizer) == text:
            raise _tool_not_rendered(row, "?")
        return
    found = _text(marked, tokenizer) or ""
    for number, error in enumerate(marks.errors):
        if marks.text(number) not in found:
            alone = _marked(row, _Marks(marks.stem, number))
            if _text(alone, tokenizer) == text:
                raise error()


def require_tool_calls(row: Conversation, turns: Iterable[int], text: str) -> None:
    """Raise BadRow if `text` lacks the name of a function that one of these messages calls."""
    for index in turns:
        for call in row.messages[index].get("tool_calls", ()):
            if call["function"]["name"] not in text:
                raise _call_not_rendered(row, index)


def _text(row: Conversation, tokenizer: ChatTokenizer) -> str | None:
    """The text of a row with marks. None if the template refuses the row. The template then uses
    the marked part, so the part is not left out."""
    try:
        return render(row, tokenizer)
    except BadRow:
        return None


def _marked(row: Conversation, marks: _Marks) -> Conversation:
    """The row with marks in its tools and calls."""
    tools = None if row.tools is None else [_marked_tool(row, tool, marks) for tool in row.tools]
    messages = tuple(
        message | {"tool_calls": [_marked_call(row, i, c, marks) for c in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for i, message in enumerate(row.messages)
    )
    return replace(row, tools=tools, messages=messages)


def _marked_tool(row: Conversation, tool: Any, marks: _Marks) -> Any:
    name = _name(tool)
    if name is None:
        return tool
    function = dict(tool.get("function", tool))
    function["name"] = name + marks.next(lambda: _tool_not_rendered(row, name))
    parameters = function.get("parameters")
    if isinstance(parameters, dict) and parameters:
        mark = marks.next(lambda: _tool_not_rendered(row, name, "the parameters of "))
        if mark:
            function["parameters"] = _with_property(parameters, mark)
    return tool | {"function": function} if "function" in tool else function


def _with_property(parameters: dict[str, Any], mark: str) -> dict[str, Any]:
    properties = parameters.get("properties")
    if not isinstance(properties, dict):
        return parameters | {mark: mark}
    return parameters | {"properties": properties | {mark: _PROPERTY | {"description": mark}}}


def _marked_call(
    row: Conversation, index: int, call: dict[str, Any], marks: _Marks
) -> dict[str, Any]:
    function = call["function"]
    name, arguments = function["name"], function["arguments"]
    marked_name = name + marks.next(lambda: _call_not_rendered(row, index))
    as_text = isinstance(arguments, str)
    values = _marked_value(
        json.loads(arguments) if as_text else arguments,
        lambda: marks.next(lambda: _call_not_rendered(row, index, f", with all of {name!r:.60}")),
    )
    changed = json.dumps(values, ensure_ascii=False) if as_text else values
    return call | {"function": function | {"name": marked_name, "arguments": changed}}


def _marked_value(value: Any, mark: Callable[[], str]) -> Any:
    """The arguments with a mark around each text and instead of each number. Nulls are kept."""
    if isinstance(value, dict):
        return {key: _marked_value(inner, mark) for key, inner in value.items()}
    if isinstance(value, list):
        return [_marked_value(inner, mark) for inner in value]
    if isinstance(value, str):
        return mark() + value + mark()
    return value if value is None else mark() or value


def _name(tool: object) -> str | None:
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None


def _tool_not_rendered(row: Conversation, name: str, part: str = "") -> BadRow:
    return BadRow(
        "tools_not_rendered",
        f"{row.source}: the chat template does not render {part}the tool {name!r}",
        "use a tokenizer or a chat template that renders tools",
    )


def _call_not_rendered(row: Conversation, index: int, part: str = "") -> BadRow:
    return BadRow(
        "tools_not_rendered",
        f"{row.source}: message {index + 1}: the chat template does not render tool calls{part}",
        "use a tokenizer or a chat template that renders tool calls",
    )
