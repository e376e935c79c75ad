"""Random files of good and bad rows: each row is kept, or noted with its line and reason."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sftctl.config.schema import DataConfig, Format
from sftctl.data.conversations.conversation import from_text
from sftctl.data.conversations.roles import ROLES
from sftctl.data.conversations.shapes import ROW_KEYS
from sftctl.data.ledger import BadRow, SourceLine
from sftctl.data.prepare.duplicates import SeenDigests
from sftctl.data.prepare.row_batches import InputFile, RowPreparation, prepare_rows, raw_batches
from sftctl.data.reading.sources import Source
from sftctl.model.tokenizer.template_limits import new_pulse
from sftctl.model.tokenizer.tokenizer import ChatTokenizer

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
SOME = TEXT.filter(str.strip)

Row = tuple[bytes, str | None]  # its text, and the reason for which it is noted
Pack = Callable[[bytes], bytes]


def good(question: str, answer: str, shape: int) -> bytes:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    rows = [
        {"messages": turns, "id": 7},
        {"conversations": turns},
        {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]},
        {"instruction": question, "input": "", "output": answer},
        {"prompt": question, "completion": answer},
        {"messages": [*turns, turns[0], turns[1] | {"weight": 0}]},
    ]
    return json.dumps(rows[shape], ensure_ascii=shape % 2 == 0).encode()


USER = b'{"role": "user", "content": "x"}'
BAD = [
    (b'{"messages": [%s]}' % USER, "no_target"),
    (b'{"messages": [{"role": "assistant", "content": "x", "train": false}]}', "no_target"),
    (b'{"instruction": "%s", "output": "x"}' % (b"long " * 800), "no_target"),
    (b'{"instruction": "a", "output": "%s"}' % (b"long " * 800), "truncated"),
    (b'{"messages": []}', "empty"),
    (b'{"conversations": [], "system": "S"}', "empty"),
    (b'{"messages": [{"role": "robot", "content": "x"}]}', "bad_role"),
    (b'{"conversations": [{"from": null, "value": "x"}]}', "bad_role"),
    (b"{}", "bad_shape"),
    (b"null", "bad_shape"),
    (b"[%s]" % USER, "bad_shape"),
    (b'{"messages": [%s], "tools": 7}' % USER, "bad_shape"),
    (b'{"messages": [%s, {"role": "assistant", "content": 1}]}' % USER, "bad_shape"),
    (b'{"messages": NaN}', "broken_json"),
    (b'{"a": NaN}', "bad_shape"),
    (b'{"a": 1,}', "broken_json"),
    (b'{"a": "\\ud800"}', "broken_json"),
    (b'{"a": ' + b"[" * 2000 + b"]" * 2000 + b"}", "broken_json"),
    (b'{"a": "\xff\xfe"}', "invalid_utf8"),
    (b'{"a": "\xed\xa0\x80"}', "invalid_utf8"),
]
KEPT = ("truncated", None)

ROW = st.one_of(
    st.tuples(st.builds(good, SOME, TEXT, st.integers(0, 5)), st.none()), st.sampled_from(BAD)
)
PLAIN_OR_ZIPPED = st.sampled_from([bytes, gzip.compress])


def prepared(
    path: Path, tokenizer: ChatTokenizer, batch_bytes: int = 1 << 20
) -> tuple[int, int, list[tuple[int, str]]]:
    """Rows read, examples kept, and the (line, reason) of every note."""
    preparation = RowPreparation.of(tokenizer, DataConfig(max_seq_len=500), SeenDigests())
    file = InputFile(0, Source(path, "rows", ""), 0.3)
    batches = [
        prepare_rows(batch, new_pulse(), preparation) for batch in raw_batches([file], batch_bytes)
    ]
    assert all(note.source.file == "rows" for batch in batches for note in batch.notes)
    return (
        sum(batch.num_rows for batch in batches),
        sum(len(part.lengths) for batch in batches for part in batch.examples.values()),
        [(note.source.line, note.reason) for batch in batches for note in batch.notes],
    )


def assert_accounted(
    rows: list[Row], lines: list[int], path: Path, tokenizer: ChatTokenizer
) -> None:
    read, kept, notes = prepared(path, tokenizer)
    assert read == len(rows)
    assert notes == [(n, reason) for n, (_, reason) in zip(lines, rows, strict=True) if reason]
    dropped = [reason for _, reason in notes if reason not in KEPT]
    assert kept + len(dropped) == read


quick = settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@quick
@given(st.lists(st.tuples(ROW, st.integers(0, 2)), max_size=12), PLAIN_OR_ZIPPED, st.booleans())
def test_kept_and_dropped_are_all_rows_of_json_lines(
    tmp_path: Path,
    chatml: ChatTokenizer,
    rows_and_gaps: list[tuple[Row, int]],
    pack: Pack,
    has_crlf: bool,
) -> None:
    newline = b"\r\n" if has_crlf else b"\n"
    text, lines, line = b"", [], 1
    for (row, _), num_blank in rows_and_gaps:
        lines.append(line + num_blank)
        text += newline * num_blank + row + newline
        line += num_blank + 1
    path = tmp_path / "rows"
    # A first row that is a list would make it an array.
    path.write_bytes(pack(b"{}" + newline + text))
    rows = [(b"{}", "bad_shape"), *(row for row, _ in rows_and_gaps)]
    assert_accounted(rows, [1, *(line + 1 for line in lines)], path, chatml)


@quick
@given(st.lists(ROW, max_size=12), PLAIN_OR_ZIPPED, st.sampled_from([b",\n", b" , ", b"\n\n,"]))
def test_kept_and_dropped_are_all_rows_of_an_array(
    tmp_path: Path, chatml: ChatTokenizer, rows: list[Row], pack: Pack, comma: bytes
) -> None:
    text, lines = b"\n[", []
    for number, (row, _) in enumerate(rows):
        text += comma if number else b"\n"
        lines.append(text.count(b"\n") + 1)
        text += row
    path = tmp_path / "rows"
    path.write_bytes(pack(text + b"]\n"))
    assert_accounted(rows, lines, path, chatml)


@quick
@given(st.data())
def test_a_cut_anywhere_loses_nothing_before_it(
    tmp_path: Path, chatml: ChatTokenizer, data: st.DataObject
) -> None:
    rows = [good(f"question {number}", "answer", number % 6) for number in range(6)]
    array = data.draw(st.booleans())
    text = b"[" + b",\n".join(rows) + b"]" if array else b"\n".join(rows) + b"\n"
    cut = data.draw(st.integers(1, len(text) - 1))
    path = tmp_path / "rows"
    path.write_bytes(text[:cut])
    read, kept, notes = prepared(path, chatml)
    assert read == kept + len(notes)
    ends = [text.index(row) + len(row) for row in rows]
    if array:
        # A row of an array is complete only if the text after it is there.
        assert kept == sum(end < cut for end in ends)
        assert notes == [(text[:cut].count(b"\n") + 1, "cut_off")]
    else:
        assert kept == sum(end <= cut for end in ends)
        is_within = any(0 < cut - (end - len(row)) < len(row) for end, row in zip(ends, rows))  # noqa: B905
        assert [reason for _, reason in notes] == ["cut_off"] * is_within


@pytest.mark.parametrize("size", [1, 3, 4096])
def test_batches_are_cut_by_size_and_hold_every_row(
    tmp_path: Path, chatml: ChatTokenizer, size: int
) -> None:
    rows = [good("question", "answer", number % 6) for number in range(40)]
    (tmp_path / "rows").write_bytes(b"\n".join(rows))
    assert prepared(tmp_path / "rows", chatml, size) == (40, 40, [])


FIELDS = sorted(ROW_KEYS) + ["role", "content", "from", "value", "tool_calls", "function_call"]
FIELDS += ["reasoning_content", "train", "weight", "function", "name", "arguments", "text", "id"]
WORDS = st.sampled_from(["user", "assistant", "human", "gpt", "tool", "function_call", "[{", "[]"])
ANY_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 2) | st.floats(0, 2) | WORDS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4)
    ),
    max_leaves=12,
)
SHAPES = ["auto", "messages", "sharegpt", "alpaca", "prompt-completion", "text"]


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), ANY_VALUE, max_size=5), st.sampled_from(SHAPES))
def test_every_row_is_a_conversation_or_a_bad_row(row: dict[str, Any], shape: Format) -> None:
    try:
        conversation = from_text(json.dumps(row).encode(), shape, SourceLine("rows", 1))
    except BadRow as problem:
        assert problem.reason in ("bad_shape", "bad_role", "empty", "not_text", "preference")
        assert problem.message.startswith("rows:1: ")
        return
    assert all(isinstance(message["content"], str) for message in conversation.messages)
    assert all(message["role"] in ROLES.values() for message in conversation.messages)
    assert conversation.untrained <= set(range(len(conversation.messages)))
