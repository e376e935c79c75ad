"""Options of the chat template that a row asks for, compared with those of the settings."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sftctl.data.conversations.columns import OPTIONS
from sftctl.data.conversations.conversation import Conversation
from sftctl.data.ledger import BadRow
from sftctl.model.tokenizer.template_options import options_of
from sftctl.model.tokenizer.tokenizer import ChatTokenizer


def options_read(tokenizer: ChatTokenizer) -> frozenset[str]:
    """The names of the options that any of the templates reads."""
    return frozenset().union(*(options_of(one) or () for one in tokenizer.templates.values()))


def with_options_checked(
    row: Conversation, given: Mapping[str, Any], read: frozenset[str]
) -> Conversation:
    """The row. Options that no template reads are added to its unread columns.

    All rows are rendered with the options `given`. Raises BadRow if the row asks for another value
    of an option in `read`.
    """
    for name, value in row.options.items():
        if name in read and (name not in given or given[name] != value):
            shown = json.dumps(value, ensure_ascii=False)
            raise BadRow(
                "bad_shape",
                f"{row.source}: {OPTIONS!r} asks for the template option {name}={shown:.60}",
                f"--template-option {name}={shown:.60} sets it for all rows; rows with another "
                "value need a store of their own",
            )
    unread = tuple(f"{OPTIONS}.{name}" for name in row.options if name not in read)
    return replace(row, left=(*row.left, *unread)) if unread else row
