"""Rows of conversations, and how tests read them."""

from typing import Any

from sftctl.config.schema import Format
from sftctl.data.conversations.conversation import Conversation, from_row
from sftctl.data.ledger import SourceLine

HERE = SourceLine("rows.jsonl", 7)


def read(row: dict[str, Any], format: Format = "auto") -> Conversation:
    """The conversation in a row that is said to be at rows.jsonl:7."""
    return from_row(row, format, HERE)
