"""A conversation as the text that inference would see, with all that it says in it."""

from collections.abc import Iterable
from dataclasses import replace

from sftctl.data.conversations.conversation import Conversation
from sftctl.data.ledger import BadRow
from sftctl.errors import DataError
from sftctl.model.tokenizer.tokenizer import ChatTokenizer


def render(row: Conversation, tokenizer: ChatTokenizer, prompt: bool = False) -> str:
    """The text that inference would see; BadRow where the template refuses the conversation."""
    try:
        return tokenizer.render(list(row.messages), row.tools, prompt)
    except DataError as problem:
        what = f"{row.source}: {problem.message}"
        raise BadRow("template_refused", what, problem.hint) from problem


def require_tools(row: Conversation, tokenizer: ChatTokenizer, text: str) -> None:
    """BadRow where `text`, which `row` became, leaves tools or tool calls out.

    Many templates drop them without a word: that would teach calls of what the model was never
    shown, or silence. That a name stands in the text is no proof: somebody may have said it.
    """
    names = [name for tool in row.tools or () if (name := _name(tool)) is not None]
    missing = [name for name in names if name not in text]
    if row.tools and not missing and _becomes(text, replace(row, tools=None), tokenizer):
        missing = names or ["?"]
    if missing:
        raise BadRow(
            "tools_not_rendered",
            f"{row.source}: the chat template does not render the tool {missing[0]!r}",
            "use a tokenizer or a chat template that renders tools",
        )
    calling = [i for i, message in enumerate(row.messages) if message.get("tool_calls")]
    require_tool_calls(row, calling, text)
    silent = [{k: v for k, v in m.items() if k != "tool_calls"} for m in row.messages]
    if calling and _becomes(text, replace(row, messages=tuple(silent)), tokenizer):
        raise _without_calls(row, calling[0])


def require_tool_calls(row: Conversation, turns: Iterable[int], text: str) -> None:
    """BadRow where `text` has not even the names of what these turns call."""
    for index in turns:
        for call in row.messages[index].get("tool_calls", ()):
            if call["function"]["name"] not in text:
                raise _without_calls(row, index)


def _name(tool: object) -> str | None:
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None


def _becomes(text: str, row: Conversation, tokenizer: ChatTokenizer) -> bool:
    try:
        return render(row, tokenizer) == text
    except BadRow:  # the template misses what was left out: it looked at it
        return False


def _without_calls(row: Conversation, index: int) -> BadRow:
    return BadRow(
        "tools_not_rendered",
        f"{row.source}: message {index + 1}: the chat template does not render tool calls",
        "use a tokenizer or a chat template that renders them",
    )
