import pytest

from sftctl.words import counted


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0 ranks"), (1, "1 rank"), (2, "2 ranks"), (12345, "12,345 ranks")]
)
def test_a_count_has_the_right_noun(number: int, words: str) -> None:
    assert counted(number, "rank") == words


def test_a_noun_may_have_a_plural_of_its_own() -> None:
    assert counted(1, "row says", "rows say") == "1 row says"
    assert counted(3, "row says", "rows say") == "3 rows say"
