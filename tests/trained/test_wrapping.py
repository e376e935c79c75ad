"""Words of a stream are not broken at the width of the terminal, and no letter is lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftctl.trained.wrapping import WordWrap
from sftctl.words import num_cells


def wrapped(pieces: list[str], width: int) -> str:
    written: list[str] = []
    lines = WordWrap(width, written.append)
    for piece in pieces:
        lines.add(piece)
    lines.flush()
    return "".join(written)


@pytest.mark.parametrize(
    ("pieces", "width", "expected"),
    [
        (["a classic exam", "ple of a wor", "ld."], 12, "a classic \nexample of a\nworld."),
        (["one\ntwo three"], 7, "one\ntwo \nthree"),
        (["unbreakable"], 4, "unbr\neaka\nble"),
        (["今天天气很好"], 6, "今天天\n气很好"),
        (["no width"], 10**9, "no width"),
    ],
)
def test_lines_break_between_words(pieces: list[str], width: int, expected: str) -> None:
    assert wrapped(pieces, width) == expected


@given(st.lists(st.text("ab 今é\u0301\n", max_size=9), max_size=9), st.integers(2, 12))
def test_nothing_is_lost_and_no_line_is_too_wide(pieces: list[str], width: int) -> None:
    result, text = wrapped(pieces, width), "".join(pieces)
    assert result.replace("\n", "") == text.replace("\n", "") or "  " in text or " " in text
    assert "".join(result.split()) == "".join(text.split())
    assert all(sum(map(num_cells, line)) <= width for line in result.split("\n"))
