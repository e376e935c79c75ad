"""Recognize files that users give instead of a TOML file: data, YAML, JSON, folders."""

import re
from pathlib import Path

from sftctl.disk import read_refusals
from sftctl.errors import ConfigError
from sftctl.words import in_shell

_DATA = (".jsonl", ".ndjson", ".json", ".parquet", ".arrow", ".csv", ".tsv", ".tab", ".txt", ".md")
_PACKED = (".gz", ".zst")
_YAML_LINE = re.compile(rb"^[\w-]+:(\s|$)", re.MULTILINE)
_ROWS = re.compile(rb'\s*(\{|\[\s*[{\["])')
_START = 4096
_WRITE_ONE = "`sftctl train --print-config > run.toml` writes a configuration with every key"


def other_file(path: Path) -> ConfigError | None:
    """The error for a path that can't be read as TOML, if it is data, YAML, a run, or a folder.

    None if it is something else, such as a configuration with a mistake.
    """
    if path.is_dir():
        return _folder(path)
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in _PACKED]
    suffix = suffixes[-1] if suffixes else ""
    with read_refusals(path, ConfigError, _WRITE_ONE), path.open("rb") as file:
        start = file.read(_START).removeprefix(b"\xef\xbb\xbf")
    if suffix in (".yaml", ".yml") or (
        suffix not in (*_DATA, ".toml") and _YAML_LINE.search(start)
    ):
        return ConfigError(
            f"{path}: YAML is not read: a configuration is TOML",
            hint=f"{_WRITE_ONE}; docs/migrating.md has the keys of other tools",
        )
    if suffix in _DATA or _ROWS.match(start):
        return _is(path, "data", f"`sftctl train --data {in_shell(path)}` trains on it")
    return None


def _folder(path: Path) -> ConfigError:
    if (path / "run.json").is_file():
        return _is(path, "a run", f"`sftctl resume {in_shell(path)}` continues it")
    if (path / "config.json").is_file():
        return _is(path, "a model directory", f"`sftctl train --model {in_shell(path)}` trains it")
    kind = "a token store" if (path / "manifest.json").is_file() else "a folder"
    return _is(path, kind, f"`sftctl train --data {in_shell(path)}` trains on it")


def _is(path: Path, kind: str, hint: str) -> ConfigError:
    return ConfigError(f"{path}: this is {kind}, not a configuration", hint)
