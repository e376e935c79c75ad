"""Check a value against the schema: key, type and bounds; suggest the nearest key."""

import tomllib
from dataclasses import fields
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from sftctl.config.keys import beyond_bounds, keys, type_of
from sftctl.config.schema import SECTIONS
from sftctl.errors import ConfigError

EVERY_KEY = "`sftctl train --print-config` shows every key, what it means and its default"


def checked(key: str, readings: tuple[object, ...]) -> Any:
    """The first of `readings` that has the key's type; ConfigError if none has, or out of bounds.

    `readings` are the ways in which a value can be read, see `readings_of`.
    """
    known = {**dict.fromkeys(keys()), "output_dir": str}
    if key not in known:
        raise ConfigError(f"unknown key {key}{_did_you_mean(key)}", hint=EVERY_KEY)
    allowed = _alternatives(known[key] or type_of(key))
    for reading in readings:
        for expected in allowed:
            if _fits(reading, expected):
                value = float(reading) if expected is float else reading  # type: ignore[arg-type]
                return _within_bounds(key, value)
    raise ConfigError(f"{key}: expected {_describe(allowed)}, got {readings[0]!r}", hint=EVERY_KEY)


def _within_bounds(key: str, value: object) -> object:
    problem = "is empty" if value == "" else None
    if key != "output_dir":
        problem = problem or beyond_bounds(key, value)
    if problem is not None:
        raise ConfigError(f"{key}: {problem}", hint=EVERY_KEY)
    return value


def _did_you_mean(key: str) -> str:
    """Suggest the nearest key; if none is near, list the section's keys or the sections."""
    section, _, name = key.rpartition(".")
    elsewhere = [known for known in keys() if known.endswith(f".{name}")]
    near = elsewhere or _near(name, section, 0.6) or _near(name, "", 0.75)
    near = near or get_close_matches(key, keys(), n=1, cutoff=0.75)
    if near:
        return f"; did you mean {near[0]}?"
    if section in SECTIONS:
        return f"; [{section}] has {', '.join(item.name for item in fields(SECTIONS[section]))}"
    return f"; sections are {', '.join(SECTIONS)}"


def _near(name: str, section: str, cutoff: float) -> list[str]:
    """The key with the most similar name, in one section or, if `section` is "", in all."""
    names = {k.partition(".")[2]: k for k in keys() if not section or k.startswith(f"{section}.")}
    return [names[found] for found in get_close_matches(name, names, n=1, cutoff=cutoff)]


def readings_of(value: object) -> tuple[object, ...]:
    """The ways to read an override: the text itself, or the TOML value that it represents."""
    if not isinstance(value, str):
        return (value,)
    try:
        read = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return (value, *_number(value))
    return (read, value) if isinstance(read, str) else (value, read)


def _number(text: str) -> tuple[float, ...]:
    """Numbers such as `.5`, which people write and TOML does not allow."""
    try:
        return (float(text),)
    except ValueError:
        return ()


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
    names = [
        "true or false" if a is bool else getattr(a, "__name__", str(a))
        for a in allowed
        if a is not None
    ]
    return " or ".join(names)
