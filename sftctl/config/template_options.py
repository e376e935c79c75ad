"""Options of a chat template: the flag --template-option, and the allowed names and values."""

import re
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

from sftctl.errors import ConfigError

_EXAMPLE = "--template-option enable_thinking=false"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
GIVEN = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "raise_exception", "strftime_now"}
)
"""Variables of a template that are not options, because the renderer sets them."""


def template_options(texts: Iterable[str] | None) -> dict[str, object]:
    """["enable_thinking=false"] -> {"data.template_options": {"enable_thinking": False}}.

    Raises ConfigError for a text without =.
    """
    options: dict[str, Any] = {}
    for text in texts or ():
        name, found, value = text.partition("=")
        if not found:
            raise ConfigError(
                f"--template-option {text}: expected KEY=VALUE", hint=f"as in {_EXAMPLE}"
            )
        options[name.strip()] = _value(value.strip())
    return {"data.template_options": options} if options else {}


def _value(text: str) -> Any:
    """The value in a text: true, false, a number, or a text with or without quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except ValueError:
        return text


def check_options(options: Mapping[str, Any]) -> None:
    """Raise ConfigError for a name or a value that an option can't have."""
    for name, value in options.items():
        if not _NAME.fullmatch(name) or name in GIVEN:
            raise ConfigError(
                f"data.template_options: {name!r} is not the name of an option",
                hint=f"as in {_EXAMPLE}",
            )
        if not isinstance(value, (bool, int, float, str)):
            raise ConfigError(
                f"data.template_options: {name} is a {type(value).__name__}",
                hint="an option is true, false, a number or a text",
            )
