"""Options of a chat template: the flag --template-option, and the allowed names and values."""

import re
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

from sftctl.errors import ConfigError

_EXAMPLE = "--template-option enable_thinking=false"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TRUTHS = {"true": True, "false": False}
_UNCLEAR = {
    "yes": "true",
    "on": "true",
    "no": "false",
    "off": "false",
    "none": "false",
    "null": "false",
    "nil": "false",
    "": "false",
}
"""Other spellings of true and false -> ours. With such a text, a template does the opposite of what
is meant: every text except the empty one counts as true."""

GIVEN = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "raise_exception", "strftime_now"}
)
"""Variables of a template that are not options, because the renderer sets them."""


def template_options(texts: Iterable[str] | None) -> dict[str, object]:
    """["enable_thinking=false"] -> {"data.template_options": {"enable_thinking": False}}.

    Raises ConfigError for a text without =, an unclear value, and two values of one option.
    """
    options: dict[str, Any] = {}
    for text in texts or ():
        name, found, value = text.partition("=")
        if not found:
            raise ConfigError(
                f"--template-option {text}: expected KEY=VALUE", hint=f"as in {_EXAMPLE}"
            )
        name, value = name.strip(), _value(name.strip(), value.strip())
        if options.setdefault(name, value) != value:
            raise ConfigError(
                f"--template-option {name} is given twice, with different values",
                hint="give each option once",
            )
    return {"data.template_options": options} if options else {}


def _value(name: str, text: str) -> Any:
    """The value in a text: true or false in any case, a number, or a text with or without quotes.

    Raises ConfigError for a text that may be meant as true, false or null.
    """
    if (word := text.lower()) in _TRUTHS:
        return _TRUTHS[word]
    if (meant := _UNCLEAR.get(word)) is not None:
        raise ConfigError(
            f"--template-option {name}={text}: is this a truth value or a text?",
            hint=f"write {name}={meant}, or for the text {name}='\"{text}\"', or leave the option "
            "out",
        )
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
