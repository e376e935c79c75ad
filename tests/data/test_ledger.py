"""Notes about rows that were not kept as they came, and the ledger that records and counts them."""

import io
import json
import pickle

import pytest

from sftctl.data.ledger import BadRow, Ledger, Note, SourceLine, TooLong
from sftctl.errors import DataError

HERE = SourceLine("rows.jsonl", 7)
DROPPED = Note.of(BadRow("bad_role", "rows.jsonl:7: unknown role 'x'", "known roles: y"), HERE)
EMPTY = Note.of(BadRow("empty", "rows.jsonl:7: empty conversation"), HERE)


@pytest.mark.parametrize(
    ("reason", "tokens_lost", "message"),
    [
        ("truncated", 1200, "truncated to the maximum length: 1,200 tokens are lost"),
        ("truncated", 1, "truncated to the maximum length: 1 token is lost"),
        ("too_long_dropped", 9, "longer than the maximum length: 9 tokens are lost"),
        ("no_target", 9, "no target token within the maximum length: 9 tokens are lost"),
    ],
)
def test_a_note_about_a_long_row_says_what_is_lost(
    reason: TooLong, tokens_lost: int, message: str
) -> None:
    note = Note.too_long(HERE, reason, tokens_lost)
    assert note.message == f"rows.jsonl:7: {message}"
    assert note.hint == "raise --max-seq-len"


def test_a_note_about_a_split_row_counts_examples_and_lost_tokens() -> None:
    assert Note.split(HERE, 3, 0).message == "rows.jsonl:7: split into 3 examples"
    assert Note.split(HERE, 1, 5).message == "rows.jsonl:7: split into 1 example: 5 tokens are lost"


def test_the_ledger_has_a_line_for_each_note_and_counts_by_reason() -> None:
    file = io.BytesIO()
    ledger = Ledger(file, strict=False)
    notes = [
        Note.too_long(HERE, "truncated", 5),
        Note.too_long(HERE, "truncated", 6),
        Note.split(HERE, 2, 1),
        DROPPED,
        EMPTY,
        Note.too_long(HERE, "no_target", 7),
    ]
    for note in notes:
        ledger.write(note)
    lines = [json.loads(line) for line in file.getvalue().splitlines()]
    assert lines[0] == {
        "file": "rows.jsonl",
        "line": 7,
        "reason": "truncated",
        "tokens_lost": 5,
        "detail": "truncated to the maximum length: 5 tokens are lost",
    }
    assert [line["reason"] for line in lines] == [note.reason for note in notes]
    assert (ledger.rows_truncated, ledger.rows_split) == (2, 1)
    assert ledger.rows_dropped == {"bad_role": 1, "empty": 1, "no_target": 1}
    assert ledger.tokens_lost == {
        "truncated": 11,
        "split": 1,
        "bad_role": 0,
        "empty": 0,
        "no_target": 7,
    }
    first = ledger.first_dropped_in({DROPPED.source.file})
    assert first == DROPPED  # not one that is kept in part
    assert ledger.first_dropped_in({"another"}) is None


def test_a_strict_ledger_raises_each_note_as_an_error() -> None:
    file = io.BytesIO()
    ledger = Ledger(file, strict=True)
    for note, hint in (
        (DROPPED, "known roles: y"),
        (Note.too_long(HERE, "no_target", 9), "raise --max-seq-len, or prepare without --strict"),
        (EMPTY, "without --strict such a row is skipped and recorded in ledger.jsonl"),
    ):
        with pytest.raises(DataError) as caught:
            ledger.write(note)
        assert (caught.value.message, caught.value.hint) == (note.message, hint)
    assert file.getvalue() == b""


def test_a_bad_row_survives_the_way_between_processes() -> None:
    copy = pickle.loads(pickle.dumps(BadRow("empty", "a message", "a hint", 5)))
    assert (copy.reason, copy.message, copy.hint, copy.tokens_lost) == (
        "empty",
        "a message",
        "a hint",
        5,
    )
