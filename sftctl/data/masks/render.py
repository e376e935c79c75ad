"""Render a conversation to text with the chat template, and refuse text without its tools."""

from collections.abc import Iterable
from dataclasses import replace

from sftctl.data.conversations.conversation import Conversation
from sftctl.data.ledger import BadRow
from sftctl.errors import DataError
from sftctl.model.tokenizer.template_errors import TemplateFailed
from sftctl.model.tokenizer.tokenizer import ChatTokenizer


def render(row: Conversation, tokenizer: ChatTokenizer, prompt: bool = False) -> str:
    """The text that a model sees at inference; with `prompt` it ends where an answer begins.

    Raises BadRow if the template refuses the conversation, TemplateFailed if it takes too long.
    """
    try:
        return tokenizer.render(list(row.messages), row.tools, prompt)
    except TemplateFailed:  # another rendering of the row does not help
        raise
    except DataError as problem:
        message = f"{row.source}: {problem.message}"
        raise BadRow("template_refused", message, problem.hint) from problem


def require_tools(row: Conversation, tokenizer: ChatTokenizer, text: str) -> None:
    """Raise BadRow if `text`, the rendered `row`, leaves out tools or tool calls.

    Many templates drop them silently. Training on such text would teach the model to call tools
    that it was never shown, or to say nothing. A tool's name in the text is not proof, because
    somebody may have mentioned it. So the text must also change when the tools are removed.
    """
    names = [name for tool in row.tools or () if (name := _name(tool)) is not None]
    missing = [name for name in names if name not in text]
    if row.tools and not missing and _renders_to(text, replace(row, tools=None), tokenizer):
        missing = names or ["?"]
    if missing:
        raise BadRow(
            "tools_not_rendered",
            f"{row.source}: the chat template does not render the tool {missing[0]!r}",
            "use a tokenizer or a chat template that renders tools",
        )
    calling = [i for i, message in enumerate(row.messages) if message.get("tool_calls")]
    require_tool_calls(row, calling, text)
    without = [{k: v for k, v in m.items() if k != "tool_calls"} for m in row.messages]
    if calling and _renders_to(text, replace(row, messages=tuple(without)), tokenizer):
        raise _calls_not_rendered(row, calling[0])


def require_tool_calls(row: Conversation, turns: Iterable[int], text: str) -> None:
    """Raise BadRow if `text` lacks the name of a function that one of these messages calls."""
    for index in turns:
        for call in row.messages[index].get("tool_calls", ()):
            if call["function"]["name"] not in text:
                raise _calls_not_rendered(row, index)


def _name(tool: object) -> str | None:
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None


def _renders_to(text: str, row: Conversation, tokenizer: ChatTokenizer) -> bool:
    try:
        return render(row, tokenizer) == text
    except BadRow:  # the template needs the removed part, so it does render it
        return False


def _calls_not_rendered(row: Conversation, index: int) -> BadRow:
    return BadRow(
        "tools_not_rendered",
        f"{row.source}: message {index + 1}: the chat template does not render tool calls",
        "use a tokenizer or a chat template that renders tool calls",
    )
