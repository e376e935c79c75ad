"""Read and write JSON. Only this file imports orjson."""

import json
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import orjson

from sftctl.errors import SftctlError
from sftctl.words import is_hidden

_TOO_LARGE = 1 << 64
_MOST_DIGITS_BITS = 10_000  # Python refuses to write integers of more than 4,300 digits
_DEEPEST = 100  # levels; orjson reads 1024 and writes 254, and Python can compare about 300
_MANY_DIGITS = re.compile(r"[0-9]{19}")  # a more exact pattern is ten times as slow
_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS

JSONDecodeError = orjson.JSONDecodeError


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} can't be written as JSON")


def loads(data: bytes | str) -> Any:
    """Parse one JSON document. Raises `JSONDecodeError` (with `lineno`)."""
    return orjson.loads(data)


def rounded(text: str, value: Any) -> list[str]:
    """The keys of `value` whose integers were rounded. `value` is the result of `loads(text)`.

    `loads` reads integers of more than 64 bits as floats. If `value` is such an integer itself, the
    result is [""].
    """
    if not _MANY_DIGITS.search(text):
        return []
    try:
        exact = json.loads(text)
        if isinstance(value, dict):
            return [key for key, inner in value.items() if inner != exact[key]]
        return [""] if value != exact else []
    except (ValueError, RecursionError):  # thousands of digits, or hundreds of levels
        return []


def dump_line(value: object) -> bytes:
    """One line of compact JSON with a newline. Dataclasses are allowed."""
    return _dumps(value, orjson.OPT_APPEND_NEWLINE)


def dump_canonical(value: object) -> bytes:
    """Compact JSON with sorted keys. Equal values have equal bytes, so they can be hashed."""
    return _dumps(value, orjson.OPT_SORT_KEYS)


def dump_strict(value: object, *, sort_keys: bool = False) -> bytes:
    """Compact JSON. TypeError for values that other JSON readers refuse.

    These are half a surrogate pair, deep nesting, and types that JSON lacks. The other functions of
    this module change such values instead.
    """
    option = orjson.OPT_SORT_KEYS if sort_keys else 0
    return orjson.dumps(value, default=_plain, option=_OPTIONS | option)


def dump_text(value: object) -> str:
    """JSON as templates and servers write it: with spaces, and letters not escaped."""
    return json.dumps(value, ensure_ascii=False)


def dump_pretty(value: object) -> bytes:
    """Indented JSON for people."""
    return _dumps(value, orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def dump_printable(value: object) -> bytes:
    """`dump_pretty` for a terminal: letters that `printable` escapes are written as `\\uXXXX`."""
    data = dump_pretty(value)
    if data.isascii() and b"\x7f" not in data:  # orjson escapes all other control characters
        return data
    letters = (json.dumps(c)[1:-1] if is_hidden(c, keep="\n") else c for c in data.decode())
    return "".join(letters).encode()


def _dumps(value: object, option: int) -> bytes:
    try:
        return orjson.dumps(value, default=_plain, option=_OPTIONS | option)
    except orjson.JSONEncodeError:  # a large integer, half a surrogate pair, or deep nesting
        return orjson.dumps(_portable(value, 0), default=_plain, option=_OPTIONS | option)


def _portable(value: Any, depth: int) -> Any:
    """The value with large integers as text, lone surrogates escaped, and deep values cut off."""
    if isinstance(value, int) and not -_TOO_LARGE // 2 <= value < _TOO_LARGE:
        bits = value.bit_length()
        return str(value) if bits < _MOST_DIGITS_BITS else f"an integer of {bits} bits"
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Path):
        return _portable(str(value), depth)
    if is_dataclass(value) and not isinstance(value, type):
        value = {item.name: getattr(value, item.name) for item in fields(value)}
    if isinstance(value, (dict, list, tuple)) and depth >= _DEEPEST:
        return "…"
    if isinstance(value, dict):
        return {_portable(k, depth): _portable(v, depth + 1) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_portable(item, depth + 1) for item in value]
    return value


def read_object(
    path: Path, error: type[SftctlError], hint: str | None = None, *, allow_nan: bool = False
) -> dict[str, Any]:
    """The JSON object in the file `path`. Every problem is raised as `error`.

    With `allow_nan`, NaN and Infinity are accepted, which Python's json module writes.
    """
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise error(f"{path}: {problem.strerror}", hint) from problem
    try:
        return parse_object(path, data, error, hint)
    except error:
        found = _with_nan(data) if allow_nan else None
        if found is None:
            raise
        return found


def _with_nan(data: bytes) -> dict[str, Any] | None:
    """The object in `data`, if its only errors are NaN or Infinity; else None."""
    if not (b"NaN" in data or b"Infinity" in data):
        return None
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and not _is_deep(found) else None


def parse_object(
    path: Path, data: bytes, error: type[SftctlError], hint: str | None = None
) -> dict[str, Any]:
    """The JSON object in `data`, the content of the file `path`. Problems are raised as `error`."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as problem:
        raise error(f"{path}:{problem.lineno}: not JSON: {problem.msg}", hint) from problem
    if not isinstance(value, dict):
        raise error(f"{path}: expected a JSON object, found {type(value).__name__}", hint)
    if data.count(b"[") + data.count(b"{") > _DEEPEST and _is_deep(value):
        raise error(f"{path}: nested deeper than {_DEEPEST} levels", hint)
    return value


def _is_deep(value: Any) -> bool:
    """Whether a value is nested deeper than `_DEEPEST`. No known tool writes such a file."""
    pending = [iter([value])]
    while 0 < len(pending) <= _DEEPEST:
        item = next(pending[-1], pending)
        if item is pending:
            pending.pop()
        elif isinstance(item, (dict, list)):
            pending.append(iter(item.values() if isinstance(item, dict) else item))
    return bool(pending)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file that sftctl wrote. Damaged lines are skipped."""
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n") and (value := _object_in(line)) is not None:
                yield value


def _object_in(line: bytes) -> dict[str, Any] | None:
    """The object in a line, without a byte order mark and zero bytes; None if it has no object."""
    try:
        value = orjson.loads(line.removeprefix(b"\xef\xbb\xbf").replace(b"\0", b""))
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None
