"""Options of the chat template that a row asks for, compared with those of the settings."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sftctl.config.schema import DataConfig
from sftctl.data.conversations.columns import OPTIONS
from sftctl.data.conversations.conversation import Conversation
from sftctl.data.ledger import BadRow
from sftctl.model.tokenizer.template_options import options_of
from sftctl.model.tokenizer.tokenizer import ChatTokenizer


@dataclass(frozen=True, slots=True)
class RowOptions:
    """The template options of the settings, with which all rows are rendered."""

    given: Mapping[str, Any] = field(default_factory=dict)
    read: frozenset[str] = frozenset()  # names of the options that a template reads

    @classmethod
    def of(cls, tokenizer: ChatTokenizer, data: DataConfig) -> "RowOptions":
        """The options that the settings give, and those that the tokenizer's templates read."""
        names = (name for one in tokenizer.templates.values() for name in options_of(one) or ())
        return cls(data.template_options or {}, frozenset(names))

    def checked(self, row: Conversation) -> Conversation:
        """The row. Options that no template reads are added to its unread columns.

        Raises BadRow if the row asks for another value of an option than the settings give.
        """
        for name, value in row.options.items():
            if name in self.read and (name not in self.given or self.given[name] != value):
                shown = json.dumps(value, ensure_ascii=False)
                raise BadRow(
                    "bad_shape",
                    f"{row.source}: {OPTIONS!r} asks for the template option {name}={shown:.60}",
                    f"--template-option {name}={shown:.60} sets it for all rows; rows with another "
                    "value need a store of their own",
                )
        unread = tuple(f"{OPTIONS}.{name}" for name in row.options if name not in self.read)
        return replace(row, left=(*row.left, *unread)) if unread else row
