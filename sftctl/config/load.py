"""Load a RunConfig from TOML and overrides, and write it as TOML. Unknown keys are errors."""

import re
import textwrap
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from sftctl.config.check import EVERY_KEY, checked, readings_of
from sftctl.config.keys import documentation, keys
from sftctl.config.misplaced import other_file
from sftctl.config.schema import SECTIONS, RunConfig
from sftctl.disk import read_refusals
from sftctl.errors import ConfigError, UnknownKey
from sftctl.jsonio import dump_canonical
from sftctl.words import in_shell

_KEY = re.compile(r"\s*[^\s=]+\s*=")
_UNEXPANDED = re.compile(r"(~\w*|\$\w+|\$\{\w+\})(/|$)")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Layer:
    """The values from one place: a file, `--set`, or the flags."""

    origin: str
    values: Mapping[str, object]  # by dotted key
    is_file: bool = (
        False  # True: values already have their types; False: texts, read by their key's type
    )


def load_config(
    path: Path | str | None = None,
    overrides: Mapping[str, object] | Iterable[str] = (),
) -> RunConfig:
    """The configuration of a run. `overrides` override the file, and the file overrides defaults.

    `overrides` maps dotted keys to values, or is a list of texts "section.key=value", as for
    `--set`. Raises one ConfigError for all wrong keys and values (an UnknownKey if the first
    mistake is an unknown key).
    """
    if not isinstance(overrides, Mapping):
        overrides = parse_assignments(overrides)
    layers = [] if path is None else [file_layer(path)]
    return load_layers([*layers, Layer("override", overrides)])[0]


def file_layer(path: Path | str) -> Layer:
    """The values of a TOML file. Raises ConfigError if the file can't be read."""
    return Layer(str(path), _flatten(_read_toml(Path(path))), is_file=True)


def load_layers(layers: Iterable[Layer]) -> tuple[RunConfig, dict[str, str]]:
    """The configuration from all layers, and the origin of each value by key.

    A later layer overrides earlier layers. The origin is "default" if no layer has the key. Raises
    ConfigError as `load_config` does.
    """
    problems: list[ConfigError] = []
    values: dict[str, Any] = {}
    origins = dict.fromkeys(keys(), "default")
    for layer in layers:
        for key, value in layer.values.items():
            try:
                _refuse_unexpanded(key, value)
                values[key] = checked(key, (value,) if layer.is_file else readings_of(value))
                if key in origins:  # output_dir has no origin, because it is not in a section
                    origins[key] = layer.origin
            except ConfigError as error:
                where = f"{layer.origin}: " if layer.is_file else ""
                found = where + error.message
                if isinstance(error, UnknownKey):
                    in_file = layer.is_file
                    problems.append(UnknownKey(found, error.hint, key, value, is_in_file=in_file))
                else:
                    problems.append(ConfigError(found, error.hint))
    sections: dict[str, Any] = {}
    for name, cls in SECTIONS.items():
        own = {k.split(".")[1]: v for k, v in values.items() if k.startswith(f"{name}.")}
        try:
            sections[name] = cls(**own)
        except ConfigError as error:
            problems.append(error)
    if problems:
        first, message = problems[0], "; ".join(problem.message for problem in problems)
        if isinstance(first, UnknownKey):
            is_in_file = first.is_in_file
            raise UnknownKey(message, first.hint, first.key, first.value, is_in_file=is_in_file)
        raise ConfigError(message, hint=first.hint)
    output_dir = values.get("output_dir")
    config = RunConfig(output_dir=None if output_dir is None else Path(output_dir), **sections)
    return config, origins


def _refuse_unexpanded(key: str, value: object) -> None:
    """Raise ConfigError for a path that begins with ~ or $NAME. Only a shell expands these."""
    found = _UNEXPANDED.match(value) if isinstance(value, str) else None
    if found is not None and not Path(str(value)).exists():
        raise ConfigError(
            f"{key}: {found[1]} is not expanded here: {value!r}", hint="write the complete path"
        )


def parse_assignments(texts: Iterable[str]) -> dict[str, object]:
    """["optim.learning_rate=1e-5"] -> {"optim.learning_rate": "1e-5"}. Raises ConfigError for other
    texts."""
    texts = list(texts)
    broken = [f"--set {text}: expected section.key=value" for text in texts if not _KEY.match(text)]
    if broken:
        raise ConfigError("; ".join(broken), hint=f"as in --set train.epochs=3; {EVERY_KEY}")
    pairs = (text.partition("=") for text in texts)
    return {key.strip(): value.strip() for key, _, value in pairs}


def config_from_dict(tree: Mapping[str, Any]) -> RunConfig:
    """The inverse of `config_to_dict`."""
    return load_config(None, _flatten(tree))


def config_to_dict(config: RunConfig) -> dict[str, dict[str, Any]]:
    """Section -> key -> value, without `output_dir` and unset keys."""
    return {
        name: {
            item.name: _plain(value)
            for item in fields(cls)
            if (value := getattr(getattr(config, name), item.name)) is not None
        }
        for name, cls in SECTIONS.items()
    }


def _plain(value: Any) -> Any:
    """Convert a list of tables to dictionaries without unset keys. Other values do not change."""
    if not isinstance(value, tuple):
        return value
    return [{k: v for k, v in asdict(row).items() if v is not None} for row in value]


def config_to_toml(config: RunConfig) -> str:
    """The configuration as TOML text, which `load_config` can read."""
    lines: list[str] = []
    for name, section in config_to_dict(config).items():
        lines += [f"[{name}]", *(f"{key} = {toml_value(v)}" for key, v in section.items()), ""]
    return "\n".join(lines)


def config_to_commented_toml(config: RunConfig) -> str:
    """TOML text with all keys and their documentation. Unset keys are commented out."""
    lines: list[str] = []
    for name, cls in SECTIONS.items():
        lines.append(f"[{name}]")
        for item in fields(cls):
            value = getattr(getattr(config, name), item.name)
            text = textwrap.wrap(documentation()[f"{name}.{item.name}"], 96)
            setting = f"# {item.name} ="
            if value is not None:
                setting = f"{item.name} = {toml_value(_plain(value))}"
            lines += [*(f"# {line}" for line in text), setting, ""]
    return "\n".join(lines)


def toml_value(value: object) -> str:
    """A scalar, a list, a table, or a list of tables, as TOML text."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(key)} = {toml_value(v)}" for key, v in value.items()) + " }"
    if isinstance(value, list) and any(isinstance(one, dict) for one in value):
        return "[\n" + "".join(f"  {toml_value(one)},\n" for one in value) + "]"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return (
            dump_canonical(value).decode().replace("\x7f", "\\u007f")
        )  # TOML has the same escapes as JSON
    return repr(value)


def _key(name: str) -> str:
    """A key of a table, in quotes if necessary."""
    return name if _BARE_KEY.fullmatch(name) else toml_value(name)


def _read_toml(path: Path) -> dict[str, Any]:
    hint = f"`sftctl train --print-config > {in_shell(path.name)}` writes one"
    if "=" in path.name:  # with torchtune, KEY=VALUE sets a key
        hint = f"--set {path} sets a key"
    if path.is_dir() and (other := other_file(path)):
        raise other
    try:
        with read_refusals(path, ConfigError, hint):
            return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as problem:  # not UTF-8, not TOML, nested too deeply
        if other := other_file(path):
            raise other from problem
        raise ConfigError(
            f"{path}: not TOML: {problem}",
            hint='write `key = value` lines below a [section], and texts in "quotes"',
        ) from problem


def _flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": v for inner, v in value.items()}
        else:
            flat[key] = value
    return flat
