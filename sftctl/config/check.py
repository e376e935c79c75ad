"""Check a key and its value against the schema. For an unknown key, suggest a similar key."""

import tomllib
from collections.abc import Callable
from dataclasses import MISSING, fields
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from sftctl.config.keys import beyond_bounds, beyond_bounds_of, keys, type_of
from sftctl.config.schema import SECTIONS, RunConfig
from sftctl.errors import ConfigError, UnknownKey

LONG_DTYPES = {
    "fp32": "float32",
    "f32": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
    "f16": "float16",
    "half": "float16",
}
"""Short names of dtypes, as people and other tools write them."""

EVERY_KEY = "`sftctl train --print-config` shows every key, what it means and its default"


def checked(key: str, readings: tuple[object, ...]) -> Any:
    """The value of a key: the first of `readings` that has the right type (see `readings_of`).

    Raises ConfigError if no reading has the type, or if the value is out of bounds. Raises
    UnknownKey if there is no such key.
    """
    known = {**dict.fromkeys(keys()), "output_dir": str}
    if key not in known:
        message = f"unknown key {key}{_did_you_mean(key)}"
        raise UnknownKey(message, EVERY_KEY, key, readings[-1], is_in_file=False)
    limits = (lambda _: None) if key == "output_dir" else partial(beyond_bounds, key)
    return _checked_as(key, known[key] or type_of(key), readings, limits)


def _checked_as(
    key: str, hint: Any, readings: tuple[object, ...], limits: Callable[[Any], str | None]
) -> Any:
    """The first reading that has the type `hint`. `limits` returns why a value is not allowed."""
    allowed = _alternatives(hint)
    if list in allowed and isinstance(readings[-1], str):  # `a,b` is the list ["a", "b"]
        readings = (readings[-1].split(","),)
    readings = tuple(_long_name(key, reading) for reading in readings)
    for reading in readings:
        for expected in allowed:
            if _fits(reading, expected):
                if get_origin(expected) is tuple:
                    return _rows(key, reading, get_args(expected)[0])
                value = _within_bounds(key, reading, limits)
                return float(value) if expected is float else value
    raise ConfigError(f"{key}: expected {_describe(allowed)}, got {readings[0]!r}", hint=EVERY_KEY)


def _long_name(key: str, reading: object) -> object:
    """Replace `bf16` by `bfloat16`, if the key is a dtype."""
    is_dtype = key == "train.dtype" and isinstance(reading, str)
    return LONG_DTYPES.get(str(reading), reading) if is_dtype else reading


def _rows(key: str, tables: Any, row_type: type) -> tuple[Any, ...]:
    """The tables of `[[section.key]]` as objects of the dataclass `row_type`."""
    hints = get_type_hints(row_type)
    required = [f.name for f in fields(row_type) if f.default is MISSING]
    rows = []
    for number, table in enumerate(tables, 1):
        where = f"{key}: {table.get('name') or f'number {number}'}"
        for name in table:
            if name not in hints:
                known = ", ".join(hints)
                raise ConfigError(f"{where}: unknown key {name}; there are {known}", EVERY_KEY)
        for name in required:
            if name not in table:
                raise ConfigError(f"{where}: {name} is missing", hint=EVERY_KEY)
        values = {
            name: _checked_as(
                f"{where}: {name}",
                hints[name],
                (value,),
                partial(beyond_bounds_of, row_type, name),
            )
            for name, value in table.items()
        }
        rows.append(row_type(**values))
    if not rows:
        raise ConfigError(f"{key}: is empty", hint="leave the key out")
    return tuple(rows)


def _within_bounds(key: str, value: Any, limits: Callable[[Any], str | None]) -> Any:
    if isinstance(value, list):
        return [_within_bounds(key, text, limits) for text in value]
    problem = "is empty" if value == "" else None
    if isinstance(value, str) and not _can_be_written(value):
        raise ConfigError(
            f"{key}: {value!a} has a NUL character, or is not UTF-8",
            hint="if this is the name of a file or folder, rename the file or folder",
        )
    if isinstance(value, int) and value.bit_length() > 64:
        problem = "the number has more than 64 bits"
    problem = problem or limits(value)
    if problem is not None:
        raise ConfigError(f"{key}: {problem}", hint=EVERY_KEY)
    return value


def _can_be_written(text: str) -> bool:
    """Whether a text can be a file name, and can be written to config.toml."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def _did_you_mean(key: str) -> str:
    """The end of an error message: a similar key, or the keys of the section, or all sections."""
    section, _, name = key.rpartition(".")
    elsewhere = [known for known in keys() if known.endswith(f".{name}")]
    similar = elsewhere or _similar(name, section, 0.6) or _similar(name, "", 0.75)
    similar = similar or get_close_matches(key, keys(), n=1, cutoff=0.75)
    if similar:
        return f"; did you mean {similar[0]}?"
    if section in SECTIONS:
        return f"; [{section}] has {', '.join(item.name for item in fields(SECTIONS[section]))}"
    return f"; sections are {', '.join(SECTIONS)}"


def _similar(name: str, section: str, cutoff: float) -> list[str]:
    """The keys with a similar name: at most one. `section` "" means all sections."""
    names = {k.partition(".")[2]: k for k in keys() if not section or k.startswith(f"{section}.")}
    return [names[found] for found in get_close_matches(name, names, n=1, cutoff=cutoff)]


def readings_of(value: object) -> tuple[object, ...]:
    """The ways to read an override, the most likely first: as TOML, or as plain text.

    For example, `1e-5` is a number in TOML, and `1e-5` is also a text.
    """
    if not isinstance(value, str):
        return (value,)
    try:
        read = tomllib.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError):  # not TOML, or nested too deeply
        return (value, *_number(value))
    return (read, value) if isinstance(read, str) else (value, read)


def _number(text: str) -> tuple[float, ...]:
    """The number in a text such as `.5`, which TOML does not allow. Empty if there is none."""
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
    if get_origin(hint) in (dict, list):
        return [get_origin(hint)]
    if get_origin(hint) is tuple:
        return [hint]
    return [None if hint is NoneType else hint]


def _fits(value: object, expected: Any) -> bool:
    if get_origin(expected) is tuple:
        return isinstance(value, list) and all(isinstance(row, dict) for row in value)
    if not isinstance(expected, type):
        return value == expected and type(value) is type(expected)
    if expected is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if expected is list:
        return isinstance(value, list) and all(isinstance(text, str) for text in value)
    return type(value) is expected


def _describe(allowed: list[Any]) -> str:
    words = {bool: "true or false", list: "a list of texts"}
    names = [
        "a list of tables"
        if get_origin(a) is tuple
        else words.get(a) or getattr(a, "__name__", str(a))
        for a in allowed
        if a is not None
    ]
    return " or ".join(names)


def resolved(config: RunConfig, file: Path) -> RunConfig:
    """The configuration of an existing run, unchanged.

    Raises ConfigError if a value that the run has already chosen is `auto` again.
    """
    values = {"optim.learning_rate": config.optim.learning_rate, "train.dtype": config.train.dtype}
    for key, value in values.items():
        if value == "auto":
            raise ConfigError(
                f"{file}: {key} is missing or auto, but the run has already chosen a value",
                hint="restore the value: each checkpoint's manifest.json has it under config",
            )
    return config
