"""Recognize files that do not contain rows: archives, other formats, text, one JSON object."""

import json
import re
from pathlib import PurePath
from typing import NamedTuple

from sftctl import jsonio
from sftctl.errors import DataError

_UNPACK = "unpack it first, and name the files in it"
_AGAIN = "download the file itself"
_EXPORT = "write its rows as JSON lines: one object per line"


class _Kind(NamedTuple):
    begins: bytes
    what: str
    hint: str


_KINDS = (
    _Kind(b"PK\x03\x04", "a zip archive", _UNPACK),
    _Kind(b"PK\x05\x06", "an empty zip archive", _UNPACK),
    _Kind(b"\xfd7zXZ\x00", "compressed by xz", "unpack it first: xz -d"),
    _Kind(b"BZh", "compressed by bzip2", "unpack it first: bzip2 -d"),
    _Kind(b"\x04\x22\x4d\x18", "compressed by lz4", "unpack it first: lz4 -d"),
    _Kind(b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK),
    _Kind(b"Rar!", "a RAR archive", _UNPACK),
    _Kind(b"version https://git-lfs", "a Git LFS pointer, not the file", "git lfs pull gets it"),
    _Kind(b"<!DOCTYPE", "a web page", _AGAIN),
    _Kind(b"<!doctype", "a web page", _AGAIN),
    _Kind(b"<html", "a web page", _AGAIN),
    _Kind(b"<?xml", "XML", _EXPORT),
    _Kind(b"%PDF", "a PDF document", "extract its text first"),
    _Kind(b"SQLite format 3\x00", "an SQLite database", _EXPORT),
    _Kind(b"\x89HDF", "an HDF5 file", _EXPORT),
    _Kind(b"\x93NUMPY", "a NumPy array", _EXPORT),
    _Kind(b"\x80\x02", "a pickle", _EXPORT),
    _Kind(b"\x80\x03", "a pickle", _EXPORT),
    _Kind(b"\x80\x04", "a pickle", _EXPORT),
    _Kind(b"\x80\x05", "a pickle", _EXPORT),
    _Kind(b"\xff\xfe", "UTF-16", "convert the file to UTF-8"),
    _Kind(b"\xfe\xff", "UTF-16", "convert the file to UTF-8"),
    _Kind(b"{\x00", "UTF-16", "convert the file to UTF-8"),
    _Kind(b"[\x00", "UTF-16", "convert the file to UTF-8"),
    _Kind(b"\x00{", "UTF-16", "convert the file to UTF-8"),
    _Kind(b"\x00[", "UTF-16", "convert the file to UTF-8"),
)
_FIRST_KEY = re.compile(r'\A\{\s*"([^"]*)"\s*:')
_TAR = slice(257, 262)


def refuse_other_kind(start: bytes, name: str) -> None:
    """DataError if a file begins like another kind of file than those that are read."""
    if start[_TAR] == b"ustar":
        raise DataError(f"{name}: is a tar archive", _UNPACK)
    kind = next((kind for kind in _KINDS if start.startswith(kind.begins)), None)
    if kind is None:
        return
    if kind.what == "a zip archive" and PurePath(name).suffix.lower() in (".xlsx", ".xlsm"):
        raise DataError(f"{name}: is an Excel workbook", "save it as CSV, with a header")
    raise DataError(f"{name}: is {kind.what}", kind.hint)


def looks_like_json(start: bytes) -> bool:
    """Whether any line begins like a JSON object."""
    return any(line.lstrip(b" \t\r\xef\xbb\xbf").startswith(b"{") for line in start.split(b"\n"))


def not_json(name: str) -> DataError:
    """The error for a file of text."""
    return DataError(
        f"{name}: is text, not JSON: no line begins with {{",
        "a row is one JSON object per line; --format text trains on every token of plain text",
    )


def refuse_one_object(text: bytes, name: str) -> None:
    """DataError if `text`, the start of a file, is one JSON object over several lines.

    A file whose first line is a row, or broken JSON, passes.
    """
    first, newline, _ = text.partition(b"\n")
    if not newline or not text.startswith(b"{") or _parses(first):
        return
    content = text.decode("utf-8", "ignore")
    try:
        found, end = json.JSONDecoder().raw_decode(content)
    except (ValueError, RecursionError):
        if first.strip() != b"{":
            return
        found, end = dict.fromkeys(_FIRST_KEY.findall(content)), len(content)  # too long, or cut
    if "\n" not in content[:end]:
        return
    keys = ", ".join(f"{key:.40}" for key in list(found)[:10]) or "none"
    listed = next((key for key, value in found.items() if _is_rows(value)), None)
    command = "jq -c ." if listed is None else f"jq -c '.{listed}[]'"
    raise DataError(
        f"{name}: a JSON object over several lines, with keys: {keys}",
        f"one object per line is needed, or one array: `{command} {name} > rows.jsonl` writes that",
    )


def _parses(line: bytes) -> bool:
    try:
        jsonio.loads(line)
    except jsonio.JSONDecodeError:
        return False
    return True


def _is_rows(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)
