"""Make the clock of a chat template stand still, so that rows give the same text every day."""

import json
import re
from datetime import date as Date

from sftctl.errors import ConfigError

_CALL = re.compile(r"""\bstrftime_now\s*\(\s*(?:format\s*=\s*)?(["'])(.*?)\1\s*\)""")
"""The call with which transformers lets a template write the time; its format is a constant."""

_ANY_CALL = re.compile(r"\bstrftime_now\s*\(")


def with_frozen_clock(template: str, day: Date) -> str:
    """The template with `day` in place of each call of the clock; unchanged if it has no clock.

    ConfigError if the format in a call is not a constant.
    """
    frozen = _CALL.sub(lambda call: json.dumps(day.strftime(call[2])), template)
    if _ANY_CALL.search(frozen):
        raise ConfigError(
            "the chat template writes the time in a format that it computes",
            hint="write the format into its call of strftime_now, or use another --chat-template",
        )
    return frozen
