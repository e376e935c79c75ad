"""Render a conversation to text with the chat template."""

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
