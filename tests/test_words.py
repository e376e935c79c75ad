"""Counts, sizes and durations as text."""

import ast
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import sftctl
from sftctl.words import (
    counted,
    format_age,
    format_bytes,
    format_duration,
    in_shell,
    ranges_of,
    shortened,
    wrapped,
)


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0 ranks"), (1, "1 rank"), (2, "2 ranks"), (12345, "12,345 ranks")]
)
def test_a_count_has_the_right_noun(number: int, words: str) -> None:
    assert counted(number, "rank") == words


def test_a_noun_may_have_a_plural_of_its_own() -> None:
    assert counted(1, "row says", "rows say") == "1 row says"
    assert counted(3, "row says", "rows say") == "3 rows say"


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (12_345_678, "12.3 MB"),
        (999_949_999, "999.9 MB"),
        (999_950_000, "1.0 GB"),
        (5 * 10**13, "50.0 TB"),
        (5 * 10**16, "50,000.0 TB"),
    ],
)
def test_a_size_has_the_largest_unit_that_leaves_at_least_one(num_bytes: int, text: str) -> None:
    assert format_bytes(num_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (92, "1:32"), (3599.6, "1:00:00"), (7500, "2:05:00")]
)
def test_a_duration_shows_hours_from_one_hour_on(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 seconds ago"),
        (1.4, "1 second ago"),
        (119, "119 seconds ago"),
        (7200, "2 hours ago"),
    ],
)
def test_an_age_has_the_largest_unit_of_which_there_are_two(seconds: float, text: str) -> None:
    assert format_age(seconds) == text


@pytest.mark.parametrize(
    ("text", "width", "short"),
    [
        ("loading torch", 80, "loading torch"),
        ("loading /a/long/path/model", 20, "loading ...ath/model"),
        ("loading 模型模型模型模型模型", 19, "loading ...模型模型"),
        ("x" * 30, 10, "x" * 10),
    ],
)
def test_a_text_that_is_too_wide_loses_its_middle(text: str, width: int, short: str) -> None:
    assert shortened(text, width) == short


def test_ranges_of_numbers_are_short() -> None:
    assert ranges_of([]) == ""
    assert ranges_of([3, 7, 8, 9]) == "3, 7 to 9"
    assert ranges_of([1, 3, 5, 7, 9, 10, 12]) == "1, 3, 5, 7, 9 to 10, …"


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("short  line", ["short  line"]),
        ("stopping: step 3 is saved", ["stopping: step 3", "is saved"]),
        ("type it: `sftctl x -o y` now", ["type it:", "`sftctl x -o y`", "now"]),
        ("one /a/path/wider/than/a/line", ["one", "/a/path/wider/than/a/line"]),
        ("你好你好 你好你好 你好", ["你好你好", "你好你好 你好"]),
        ("first\nsecond of two lines", ["first", "second of two", "lines"]),
    ],
)
def test_lines_are_broken_between_words_and_no_command_is(text: str, lines: list[str]) -> None:
    assert wrapped(text, 16) == "\n".join(lines)


@pytest.mark.parametrize("path", ["runs/a", "sp ace/it's $HOME", "-dash", "-", "new\nline"])
def test_a_path_in_a_command_is_one_word_of_the_shell(path: str) -> None:
    assert shlex.split(in_shell(Path(path))) == [f"./{path}" if path[0] == "-" else path]


def test_every_path_in_a_command_is_quoted() -> None:
    """Values in a command in backticks are quoted, or have a name listed here."""
    settings = ("_RESTORE", "flags", "key", "name", "tokens", "typed", "value", "words")
    not_paths = {*settings, "backend", "first", "step"}
    places = [
        f"{file}:{value.lineno}: {ast.unparse(value.value)}"
        for file in sorted(Path(sftctl.__file__).parent.rglob("*.py"))
        for text in ast.walk(ast.parse(file.read_text()))
        if isinstance(text, ast.JoinedStr)
        for value in _in_commands(text)
        if (shown := ast.unparse(value.value)) not in not_paths
        and not any(quoting in shown for quoting in ("in_shell(", "in_shell,", "shlex.quote("))
    ]
    assert places == []


def _in_commands(text: ast.JoinedStr) -> Iterator[ast.FormattedValue]:
    """The values in backticks, after the name of a program."""
    before = ""
    for part in text.values:
        if isinstance(part, ast.Constant):
            before += str(part.value)
        elif isinstance(part, ast.FormattedValue):
            typed = before.rpartition("`")[2] if before.count("`") % 2 else ""
            if typed.startswith(("sftctl ", "python ", "tar ")) or "--" in typed:
                yield part
            before += "{}"
