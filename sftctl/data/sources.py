"""Files in, rows out, each with the line it begins on."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sftctl import jsonio
from sftctl.data.conversation import SourceLine
from sftctl.disk import hash_file
from sftctl.errors import DataError

_BOM = b"\xef\xbb\xbf"
_SPACE = " \t\r\n"


def hash_source(path: Path) -> str:
    """SHA-256 of an input file."""
    try:
        return hash_file(path).sha256
    except OSError as problem:
        raise _unreadable(path, problem) from problem


def read_rows(path: Path) -> Iterator[tuple[SourceLine, dict[str, Any]]]:
    """The parsed rows of a file."""
    for source, text in raw_rows(path):
        yield source, parse_row(text, source)


def raw_rows(path: Path) -> Iterator[tuple[SourceLine, bytes]]:
    """The rows of a .jsonl file, streamed, or of a .json file (an array, or JSON lines too)."""
    num_rows = 0
    try:
        rows = _array_rows(path) if path.suffix == ".json" else _line_rows(path)
        for line, text in rows:
            num_rows += 1
            yield SourceLine(str(path), line), text
    except OSError as problem:
        raise _unreadable(path, problem) from problem
    if num_rows == 0:
        raise DataError(f"{path}: no rows in this file")


def _unreadable(path: Path, problem: OSError) -> DataError:
    return DataError(f"{path}: {(problem.strerror or str(problem)).lower()}")


def _line_rows(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            text = line.removeprefix(_BOM) if number == 1 else line
            if text := text.strip():
                yield number, text


def _array_rows(path: Path) -> Iterator[tuple[int, bytes]]:
    """The rows of one JSON array, found by the standard scanner, which tells where each begins."""
    data = path.read_bytes().removeprefix(_BOM)
    if not data.lstrip().startswith(b"["):  # JSON lines under another name
        yield from _line_rows(path)
        return
    try:
        text = data.decode()
    except UnicodeDecodeError as problem:
        line = data.count(b"\n", 0, problem.start) + 1
        raise DataError(f"{path}:{line}: invalid UTF-8") from problem
    try:
        yield from _elements(text)
    except json.JSONDecodeError as problem:
        raise _broken(
            SourceLine(str(path), problem.lineno), problem.msg, problem.colno
        ) from problem


def _elements(text: str) -> Iterator[tuple[int, bytes]]:
    """(line, JSON text) of each element of the array in `text`."""
    scan = json.JSONDecoder().raw_decode
    line, counted = 1, 0
    position, separator = _skip_space(text, 0), "["
    while text[position : position + 1] == separator:
        position = _skip_space(text, position + 1)
        if separator == "[" and text[position : position + 1] == "]":
            break
        line, counted = line + text.count("\n", counted, position), position
        _, end = scan(text, position)
        yield line, text[position:end].encode("utf-8", "surrogatepass")
        position, separator = _skip_space(text, end), ","
    if text[position : position + 1] != "]":
        raise json.JSONDecodeError("expected ',' or ']'", text, position)
    if (rest := _skip_space(text, position + 1)) < len(text):
        raise json.JSONDecodeError("more text after the array", text, rest)


def _skip_space(text: str, position: int) -> int:
    while text[position : position + 1] and text[position] in _SPACE:
        position += 1
    return position


def parse_row(text: bytes, source: SourceLine) -> dict[str, Any]:
    """The JSON object that a row is; DataError with its line for anything else."""
    try:
        row = jsonio.loads(text)
    except jsonio.JSONDecodeError as problem:
        try:
            text.decode()
        except UnicodeDecodeError:
            raise DataError(f"{source}: invalid UTF-8") from problem
        line = source.line + problem.lineno - 1
        raise _broken(SourceLine(source.file, line), problem.msg, problem.colno) from problem
    if not isinstance(row, dict):
        raise DataError(f"{source}: a row must be a JSON object, this is a {type(row).__name__}")
    return row


def _broken(source: SourceLine, reason: str, column: int) -> DataError:
    return DataError(f"{source}: broken JSON at column {column}: {reason}")
