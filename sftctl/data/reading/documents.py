"""Read a plain text file as one document: a single row with the key `text`."""

from collections.abc import Iterator
from pathlib import PurePath

from sftctl import jsonio
from sftctl.data.ledger import BadRow
from sftctl.data.reading.compressed import COMPRESSED, Reader

DOCUMENTS = (".txt", ".text", ".md")


def is_document_name(name: str) -> bool:
    """Whether the name is that of a text file, such as `a.txt` or `a.txt.gz`."""
    path = PurePath(name)
    path = path.with_suffix("") if path.suffix in COMPRESSED else path
    return path.suffix.lower() in DOCUMENTS


def begins_with_row(text: bytes) -> bool:
    """Whether the first line is a JSON object."""
    try:
        return isinstance(jsonio.loads(text.partition(b"\n")[0]), dict)
    except jsonio.JSONDecodeError:
        return False


def documents(file: Reader, name: str, max_bytes: int) -> Iterator[tuple[int, bytes | BadRow]]:
    """The complete text of a file, as its only row."""
    text: bytes = file.read(max_bytes + 1)
    if len(text) > max_bytes:
        message = f"{name}:1: the document is longer than {max_bytes >> 20} MiB"
        yield 1, BadRow("oversized", message, "split the file: each file is one document")
        return
    try:
        yield 1, jsonio.dump_line({"text": text.decode("utf-8-sig")}).strip()
    except UnicodeDecodeError as invalid:
        line = 1 + text.count(b"\n", 0, invalid.start)
        message = f"{name}:{line}: invalid UTF-8"
        yield line, BadRow("invalid_utf8", message, "convert the file to UTF-8")
