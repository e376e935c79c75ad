"""One value against the schema: its key, its type; did-you-mean."""

import tomllib
from dataclasses import fields
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from sftctl.config.schema import SECTIONS, keys
from sftctl.errors import ConfigError


def checked(key: str, readings: tuple[object, ...]) -> Any:
    """The first of the readings of a value that has the type of `key`."""
    section, _, name = key.partition(".")
    hints = get_type_hints(SECTIONS[section]) if section in SECTIONS else {}
    if key == "output_dir":
        hints = {name: str}
    if name not in hints:
        raise ConfigError(f"unknown key {key}{_did_you_mean(section, name)}")
    allowed = _alternatives(hints[name])
    for reading in readings:
        for expected in allowed:
            if _fits(reading, expected):
                return float(reading) if expected is float else reading  # type: ignore[arg-type]
    raise ConfigError(f"{key}: expected {_describe(allowed)}, got {readings[0]!r}")


def _did_you_mean(section: str, name: str) -> str:
    if section in SECTIONS:
        names = [item.name for item in fields(SECTIONS[section])]
        near = get_close_matches(name, names, n=1)
        return f"; did you mean {near[0]}?" if near else f"; [{section}] has {', '.join(names)}"
    of_that_name = [key for key in keys() if key.endswith(f".{name or section}")]
    near = of_that_name or get_close_matches(f"{section}.{name}", keys(), n=1, cutoff=0.75)
    return f"; did you mean {near[0]}?" if near else f"; sections are {', '.join(SECTIONS)}"


def readings_of(value: object) -> tuple[object, ...]:
    """What an override can mean: a text is itself, or what TOML reads in it; quotes are TOML's."""
    if not isinstance(value, str):
        return (value,)
    try:
        read = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return (value,)
    return (read, value) if isinstance(read, str) else (value, read)


def _alternatives(hint: Any) -> list[Any]:
    """`float | Literal["auto"] | None` -> [float, "auto", None]."""
    if get_origin(hint) in (Union, UnionType):
        return [choice for part in get_args(hint) for choice in _alternatives(part)]
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [None if hint is NoneType else hint]


def _fits(value: object, expected: Any) -> bool:
    if not isinstance(expected, type):
        return value == expected and type(value) is type(expected)
    if expected is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return type(value) is expected


def _describe(allowed: list[Any]) -> str:
    names = [a.__name__ if isinstance(a, type) else str(a) for a in allowed if a is not None]
    return " or ".join(names)
