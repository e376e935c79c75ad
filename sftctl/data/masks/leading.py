"""Conversations that begin with the assistant, which many chat templates refuse."""

from dataclasses import replace

from sftctl.data.conversations.conversation import Conversation
from sftctl.data.conversations.marks import moved
from sftctl.data.ledger import BadRow


def without_leading_answers(row: Conversation) -> Conversation:
    """The conversation without the assistant turns before its first user message."""
    dropped = _leading(row)
    if not dropped:
        return row
    kept = [index for index in range(len(row.messages)) if index not in dropped]
    return replace(
        row,
        messages=tuple(row.messages[index] for index in kept),
        untrained=frozenset(new for new, old in enumerate(kept) if old in row.untrained),
        weights=moved(row.weights, kept),
    )


def naming_the_option(problem: BadRow, row: Conversation) -> BadRow:
    """The error `problem`. If the row begins with the assistant, the option that may help is added
    to the message."""
    if not _leading(row):
        return problem
    advice = "the conversation begins with the assistant: try --leading-assistant drop"
    message = f"{problem.message} ({advice})"
    return BadRow(problem.reason, message, problem.hint, problem.tokens_lost)


def _leading(row: Conversation) -> set[int]:
    """The assistant turns before the first user message. Empty if there is no user message."""
    roles = [message["role"] for message in row.messages]
    first = roles.index("user") if "user" in roles else 0
    return {index for index in range(first) if roles[index] == "assistant"}
