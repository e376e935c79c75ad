"""Texts of a conversation, and of its beginnings, as inference renders them.

Each beginning is rendered once.
"""

from dataclasses import dataclass, field, replace
from typing import Any

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


@dataclass(slots=True)
class Prefixes:
    """The texts of a conversation up to each of its messages."""

    row: Conversation
    tokenizer: ChatTokenizer
    full_text: str
    _texts: dict[int, str] = field(default_factory=dict)
    _prompts: dict[int, str] = field(default_factory=dict)

    def through(self, message: int) -> str:
        """The text up to and including a message; BadRow if the template refuses it."""
        if message + 1 == len(self.row.messages):
            return self.full_text
        if message not in self._texts:
            self._texts[message] = self.render(self.row.messages[: message + 1])
        return self._texts[message]

    def prompt(self, turn: int) -> str:
        """The prompt at inference for an assistant turn, which is not the first message."""
        if turn not in self._prompts:
            self._prompts[turn] = self.render(self.row.messages[:turn], prompt=True)
        return self._prompts[turn]

    def render(self, messages: tuple[dict[str, Any], ...], prompt: bool = False) -> str:
        """The text of other messages with the tools of this conversation."""
        return render(replace(self.row, messages=messages), self.tokenizer, prompt)
