"""TOML + overrides -> RunConfig, strict, with did-you-mean; and back to TOML."""

import textwrap
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from sftctl.config.schema import SECTIONS, RunConfig, documentation, keys
from sftctl.errors import ConfigError
from sftctl.jsonio import dump_canonical


def load_config(
    path: Path | str | None = None,
    overrides: Mapping[str, object] | Iterable[str] = (),
) -> RunConfig:
    """The configuration of a run: defaults, then the file, then `overrides`.

    `overrides` maps dotted keys to values, or is a list of "section.key=value" texts as `--set`
    takes them. Every wrong key and value is told at once, in one ConfigError.
    """
    if not isinstance(overrides, Mapping):
        overrides = parse_assignments(overrides)
    problems: list[str] = []
    values: dict[str, Any] = {}
    for key, value in (_flatten(_read_toml(Path(path))) if path is not None else {}).items():
        try:
            values[key] = _checked(key, (value,))
        except ConfigError as error:
            problems.append(f"{path}: {error.message}")
    for key, value in overrides.items():
        try:
            values[key] = _checked(key, _readings(value))
        except ConfigError as error:
            problems.append(error.message)
    sections: dict[str, Any] = {}
    for name, cls in SECTIONS.items():
        own = {k.split(".")[1]: v for k, v in values.items() if k.startswith(f"{name}.")}
        try:
            sections[name] = cls(**own)
        except ConfigError as error:
            problems.append(error.message)
    if problems:
        raise ConfigError("; ".join(problems))
    output_dir = values.get("output_dir")
    return RunConfig(output_dir=None if output_dir is None else Path(output_dir), **sections)


def parse_assignments(texts: Iterable[str]) -> dict[str, object]:
    """["optim.learning_rate=1e-5"] -> {"optim.learning_rate": "1e-5"}."""
    result: dict[str, object] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text}: expected section.key=value")
        result[key.strip()] = value.strip()
    return result


def config_from_dict(tree: Mapping[str, Any]) -> RunConfig:
    """The inverse of `config_to_dict`."""
    return load_config(None, _flatten(tree))


def config_to_dict(config: RunConfig) -> dict[str, dict[str, Any]]:
    """Section -> key -> value, without `output_dir` and unset keys."""
    return {
        name: {
            item.name: value
            for item in fields(cls)
            if (value := getattr(getattr(config, name), item.name)) is not None
        }
        for name, cls in SECTIONS.items()
    }


def config_to_toml(config: RunConfig) -> str:
    """The same as TOML text, which `load_config` takes."""
    lines: list[str] = []
    for name, section in config_to_dict(config).items():
        lines += [f"[{name}]", *(f"{key} = {toml_value(v)}" for key, v in section.items()), ""]
    return "\n".join(lines)


def config_to_commented_toml(config: RunConfig) -> str:
    """Every key under its documentation; an unset one is commented out."""
    lines: list[str] = []
    for name, cls in SECTIONS.items():
        lines.append(f"[{name}]")
        for item in fields(cls):
            value = getattr(getattr(config, name), item.name)
            text = textwrap.wrap(documentation()[f"{name}.{item.name}"], 96)
            setting = f"# {item.name} =" if value is None else f"{item.name} = {toml_value(value)}"
            lines += [*(f"# {line}" for line in text), setting, ""]
    return "\n".join(lines)


def toml_value(value: object) -> str:
    """A scalar as TOML text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return (
            dump_canonical(value).decode().replace("\x7f", "\\u007f")
        )  # TOML's escapes are JSON's
    return repr(value)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise ConfigError(f"{path}: {problem.strerror}") from problem
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise ConfigError(f"{path}: not TOML: {problem}") from problem


def _flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": v for inner, v in value.items()}
        else:
            flat[key] = value
    return flat


def _checked(key: str, readings: tuple[object, ...]) -> Any:
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


def _readings(value: object) -> tuple[object, ...]:
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
