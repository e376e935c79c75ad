"""Plain text as documents, with --format text."""

from pathlib import Path

import pytest

from sftctl import jsonio
from sftctl.data.ledger import BadRow
from sftctl.data.reading.rows import MAX_ROW_BYTES, raw_rows
from tests.toys.data import file_of


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.txt", "The Elbe.\nA river.\n", "The Elbe.\nA river.\n"),
        ("a.txt", "\ufeff[1] The Elbe.\n", "[1] The Elbe.\n"),
        ("a.txt", "{ The Elbe }", "{ The Elbe }"),
        ("a.md", "# Elbe\n", "# Elbe\n"),
        ("elbe", "The Elbe.", "The Elbe."),
    ],
)
def test_a_file_of_text_is_one_document(tmp_path: Path, name: str, content: str, text: str) -> None:
    [(source, raw)] = raw_rows(file_of(tmp_path, name, content), name, "text")
    assert isinstance(raw, bytes)
    assert (source.line, jsonio.loads(raw)) == (1, {"text": text})


def test_rows_stay_rows(tmp_path: Path) -> None:
    path = file_of(tmp_path, "a.txt", '{"text": "a"}\n{"text": "b"}\n')
    assert [row for _, row in raw_rows(path, "a.txt", "text")] == [
        b'{"text": "a"}',
        b'{"text": "b"}',
    ]


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [(b"a\nb\xff", 2, "invalid_utf8"), (b"x" * (MAX_ROW_BYTES + 1), 1, "oversized")],
)
def test_a_document_that_cannot_be_read_has_a_reason(
    tmp_path: Path, content: bytes, line: int, reason: str
) -> None:
    [(source, raw)] = raw_rows(file_of(tmp_path, "a.txt", content), "a.txt", "text")
    assert isinstance(raw, BadRow)
    assert (source.line, raw.reason) == (line, reason)
