"""The setting data.columns."""

import pytest

from sftctl.data.conversations.column_map import parse_columns
from sftctl.errors import ConfigError


def test_pairs_are_read() -> None:
    assert parse_columns(None) == ()
    assert parse_columns("prompt=q, completion = a.b") == (("prompt", "q"), ("completion", "a.b"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt", "expected KEY=COLUMN"),
        ("prompt=", "expected KEY=COLUMN"),
        ("=q", "expected KEY=COLUMN"),
        ("prompt=q,", "expected KEY=COLUMN"),
        ("promt=q", "promt is not a key of a row"),
        ("prompt=q,prompt=r", "a key is named twice"),
    ],
)
def test_anything_else_is_an_error_of_the_configuration(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_columns(text)
