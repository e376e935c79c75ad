"""Refuse files without rows: archives, other formats, plain text, and a single JSON object."""

import json
import re
from pathlib import PurePath
from typing import NamedTuple

from sftctl import jsonio
from sftctl.data.conversations.shapes import detect_shape
from sftctl.data.conversations.unknown import first_list, rows_inside
from sftctl.errors import DataError

_UNPACK = "unpack it first, and name the files in it"
_UNZIP = "unpack it first (unzip FILE), and name the files in it"
_UNTAR = "unpack it first (tar -xf FILE), and name the files in it"
_AGAIN = "download the file itself"
_TO_UTF8 = "convert the file to UTF-8"
_EXPORT = "write its rows as JSON lines: one object per line"


class _Kind(NamedTuple):
    begins: bytes
    what: str
    hint: str


_KINDS = (
    _Kind(b"PK\x03\x04", "a zip archive", _UNZIP),
    _Kind(b"PK\x05\x06", "an empty zip archive", "name a file with rows"),
    _Kind(b"PK\x07\x08", "a zip archive in parts", _UNPACK),
    _Kind(b"\xfd7zXZ\x00", "compressed by xz", "unpack it first: xz -d"),
    _Kind(b"BZh", "compressed by bzip2", "unpack it first: bzip2 -d"),
    _Kind(b"\x04\x22\x4d\x18", "compressed by lz4", "unpack it first: lz4 -d"),
    _Kind(b"]\x00\x00", "compressed by lzma", "unpack it first: xz --format=lzma -d"),
    _Kind(b"LZIP\x01", "compressed by lzip", "unpack it first: lzip -d"),
    _Kind(b"\x1f\x9d", "compressed by compress", "unpack it first: uncompress"),
    _Kind(b"\x1f\x8b", "compressed by gzip twice", "unpack it once: gzip -d"),
    _Kind(b"\x28\xb5\x2f\xfd", "compressed by zstandard twice", "unpack it once: zstd -d"),
    _Kind(b"PAR1\x15", "a compressed Parquet file", "unpack it first: gzip -d or zstd -d"),
    _Kind(b"ARROW1\x00", "a compressed Arrow file", "unpack it first: gzip -d or zstd -d"),
    _Kind(b"ORC\x08", "an ORC file", _EXPORT),
    _Kind(b"Obj\x01", "an Avro file", _EXPORT),
    _Kind(b"FEA1\x00", "a Feather file of version 1", _EXPORT),
    _Kind(b"\xd0\xcf\x11\xe0", "an Office document from before 2007", "save it as CSV"),
    _Kind(b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK),
    _Kind(b"Rar!\x1a", "a RAR archive", _UNPACK),
    _Kind(b"version https://git-lfs", "a Git LFS pointer, not the file", "run `git lfs pull`"),
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
    _Kind(b"\xff\xfe", "UTF-16", _TO_UTF8),
    _Kind(b"\xfe\xff", "UTF-16", _TO_UTF8),
    _Kind(b"{\x00", "UTF-16", _TO_UTF8),
    _Kind(b"[\x00", "UTF-16", _TO_UTF8),
    _Kind(b"\x00{", "UTF-16", _TO_UTF8),
    _Kind(b"\x00[", "UTF-16", _TO_UTF8),
)
_FIRST_KEY = re.compile(r'\A\{\s*"([^"]*)"\s*:')
_TAR = slice(257, 262)
_LOOKED_AT = 1 << 12
_CONTROL = bytes({*range(32)} - {*b"\t\n\v\f\r\x1b"})
_BOM = b"\xef\xbb\xbf"


def refuse_other_kind(start: bytes, name: str) -> None:
    """Raise DataError if the first bytes of a file show a format that sftctl does not read."""
    if start[_TAR] == b"ustar" or _is_old_tar(start):
        raise DataError(f"{name}: is a tar archive", _UNTAR)
    text = start.removeprefix(_BOM).lstrip(b" \t\r\n")
    markup = text if text.startswith(b"<") else start
    kind = next((one for one in _KINDS if markup.startswith(one.begins)), None)
    if kind is None:
        if (what := _binary(start)) is not None and not text.startswith((b"{", b"[")):
            raise DataError(f"{name}: is {what}", _EXPORT if what != "UTF-16" else _TO_UTF8)
        return
    if kind.what == "a zip archive" and PurePath(name).suffix.lower() in (".xlsx", ".xlsm"):
        raise DataError(f"{name}: is an Excel workbook", "save it as CSV, with a header")
    raise DataError(f"{name}: is {kind.what}", kind.hint)


def _binary(start: bytes) -> str | None:
    """A name for binary data. None for text. A few invalid bytes do not make a text binary."""
    head = start[:_LOOKED_AT]
    if head and not head.strip(b"\0"):
        return "only zero bytes, perhaps after a failed copy or download"
    if len(head) > 3 and not head[1::2].strip(b"\0"):
        return "UTF-16"
    if head[8:9] == b"{" and head[4:8] == bytes(4):
        return "a safetensors file: weights, not rows"
    num_control = len(head) - len(head.translate(None, _CONTROL))
    return "binary data, not JSON or text" if num_control > max(1, len(head) // 50) else None


def _is_old_tar(start: bytes) -> bool:
    """Whether the data begins with a header of the first tar format.

    This format has no magic number, so its checksum is tested.
    """
    head = start[:512]
    digits = head[148:156].strip(b" \0")
    if len(head) < 512 or not digits or digits.strip(b"01234567"):
        return False
    return int(digits, 8) == sum(head) - sum(head[148:156]) + 8 * ord(" ")


def looks_like_json(start: bytes) -> bool:
    """Whether a line begins with `{`."""
    return any(line.lstrip(b" \t\r\xef\xbb\xbf").startswith(b"{") for line in start.split(b"\n"))


def not_json(name: str) -> DataError:
    """The error for a file of plain text."""
    return DataError(
        f"{name}: is text, not JSON: no line begins with {{",
        "a row is one JSON object per line; --format text trains on every token of plain text",
    )


def refuse_one_object(text: bytes, name: str) -> None:
    """Raise DataError if `text`, the start of a file, is one JSON object over several lines.

    Nothing is raised if the first line is a complete row, or if `text` is broken JSON.
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
        found, end = (
            dict.fromkeys(_FIRST_KEY.findall(content)),
            len(content),
        )  # the object is longer than `text`
    if "\n" not in content[:end]:
        return
    keys = ", ".join(f"{key:.40}" for key in list(found)[:10]) or "none"
    inside = None if detect_shape(found) else rows_inside(found) or first_list(found)
    command = "jq -c ." if inside is None else f"jq -c '{inside}'"
    raise DataError(
        f"{name}: a JSON object over several lines, with keys: {keys}",
        f"sftctl reads one object per line: `{command} {name} > rows.jsonl` writes such a file",
    )


def _parses(line: bytes) -> bool:
    try:
        jsonio.loads(line)
    except jsonio.JSONDecodeError:
        return False
    return True
