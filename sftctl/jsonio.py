"""Read and write JSON; the only file that imports orjson."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from sftctl.errors import SftctlError

_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS

JSONDecodeError = orjson.JSONDecodeError


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} can't be written as JSON")


def loads(data: bytes | str) -> Any:
    """Parse one document; raises `JSONDecodeError` (with `lineno`)."""
    return orjson.loads(data)


def dump_line(value: object) -> bytes:
    """One compact line with a newline; dataclasses are allowed."""
    return orjson.dumps(value, default=_plain, option=_OPTIONS | orjson.OPT_APPEND_NEWLINE)


def dump_canonical(value: object) -> bytes:
    """Compact, with sorted keys: equal values have equal bytes, so that they can be hashed."""
    return orjson.dumps(value, default=_plain, option=_OPTIONS | orjson.OPT_SORT_KEYS)


def dump_pretty(value: object) -> bytes:
    """Indented, for human readers."""
    return orjson.dumps(
        value,
        default=_plain,
        option=_OPTIONS | orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE,
    )


def read_object(path: Path, error: type[SftctlError], hint: str | None = None) -> dict[str, Any]:
    """The JSON object in `path`; any problem with the file is raised as `error`."""
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise error(f"{path}: {problem.strerror}", hint) from problem
    return parse_object(path, data, error, hint)


def parse_object(
    path: Path, data: bytes, error: type[SftctlError], hint: str | None = None
) -> dict[str, Any]:
    """The JSON object in `data`, the content of `path`; anything wrong is raised as `error`."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as problem:
        raise error(f"{path}:{problem.lineno}: not JSON: {problem.msg}", hint) from problem
    if not isinstance(value, dict):
        raise error(f"{path}: expected a JSON object, found {type(value).__name__}", hint)
    return value


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file that we wrote; skips an incomplete last line."""
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield orjson.loads(line)
