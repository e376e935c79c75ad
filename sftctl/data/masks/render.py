"""Render a conversation, or its first messages, with the chat template, as inference does."""

from dataclasses import dataclass, field, replace
from typing import Any

from sftctl.data.conversations.conversation import Conversation
from sftctl.data.ledger import BadRow
from sftctl.errors import DataError
from sftctl.model.tokenizer.template_errors import TemplateFailed
from sftctl.model.tokenizer.tokenizer import ChatTokenizer


def render(row: Conversation, tokenizer: ChatTokenizer, prompt: bool = False) -> str:
    """The text that a model sees at inference. `prompt`: the text ends where the model continues.

    Raises BadRow if the template refuses the conversation, TemplateFailed if rendering takes too
    long.
    """
    try:
        return tokenizer.render(list(row.messages), row.tools, prompt)
    except TemplateFailed:  # not a fault of this row
        raise
    except DataError as problem:
        message = f"{row.source}: {problem.message}"
        raise BadRow("template_refused", message, problem.hint) from problem


@dataclass(slots=True)
class Prefixes:
    """The texts of a conversation up to each of its messages. Each text is rendered only once."""

    row: Conversation
    tokenizer: ChatTokenizer
    full_text: str
    _texts: dict[int, str] = field(default_factory=dict)
    _prompts: dict[int, str] = field(default_factory=dict)

    def through(self, message: int) -> str:
        """The text up to and including a message. Raises BadRow if the template refuses it."""
        if message + 1 == len(self.row.messages):
            return self.full_text
        if message not in self._texts:
            self._texts[message] = self.render(self.row.messages[: message + 1])
        return self._texts[message]

    def prompt(self, turn: int) -> str:
        """The prompt at inference for an assistant turn. `turn` must not be the first message."""
        if turn not in self._prompts:
            self._prompts[turn] = self.render(self.row.messages[:turn], prompt=True)
        return self._prompts[turn]

    def render(self, messages: tuple[dict[str, Any], ...], prompt: bool = False) -> str:
        """The text of `messages` with the tools of this conversation."""
        return render(replace(self.row, messages=messages), self.tokenizer, prompt)
