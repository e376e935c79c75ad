"""Fix the date in a chat template, so that a row gives the same text every day."""

import json
import re
from calendar import timegm
from datetime import date as Date

from sftctl.errors import ConfigError

_CALL = re.compile(r"""\bstrftime_now\s*\(\s*(?:format\s*=\s*)?(["'])([^"'\\]*)\1\s*\)""")
"""The call by which a template writes the current time, with a constant format."""

_NAME = "strftime_now"

_SECONDS = re.compile(r"%(%|[-_0^#]*[0-9]*s)")
"""The code for seconds since 1970, and %%, which is not such a code if an s follows it."""


def with_frozen_clock(template: str, day: Date) -> str:
    """The template with the date `day` in place of each call of the clock.

    ConfigError if the format in a call is not a constant, or if the template gives the clock
    another name.
    """
    frozen = _CALL.sub(lambda call: json.dumps(_written(day, call[2])), template)
    if _NAME in frozen and _is_read(frozen):
        raise ConfigError(
            "the chat template writes the time in a format that it computes",
            hint="write the format into its call of strftime_now, or use another --chat-template",
        )
    return frozen


def _written(day: Date, format: str) -> str:
    """The date in a format. %s is the start of the day in UTC, because strftime would use the time
    zone of the machine."""
    seconds = str(timegm(day.timetuple()))
    return day.strftime(_SECONDS.sub(lambda f: f[0] if f[1] == "%" else seconds, format))


def _is_read(template: str) -> bool:
    """Whether the template uses the clock, except in `is defined`.

    If the template has a syntax error, only the text of a call is searched.
    """
    from jinja2 import Environment, TemplateSyntaxError, nodes

    environment = Environment(extensions=["jinja2.ext.loopcontrols"])
    try:
        tree = environment.parse(template)
    except TemplateSyntaxError:
        return f"{_NAME}(" in template.replace(" ", "")
    tested = {id(test.node) for test in tree.find_all(nodes.Test) if test.name == "defined"}
    names = (name for name in tree.find_all(nodes.Name) if name.name == _NAME)
    return any(id(name) not in tested and name.ctx == "load" for name in names)
