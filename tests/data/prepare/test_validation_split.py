"""validation_split: the share of rows that is held out, and which rows they are."""

import pytest

from sftctl.data.conversations.conversation import Conversation
from sftctl.data.prepare.validation_split import split_of
from tests.toys.data import read, row


def held_out(conversations: list[Conversation], val_fraction: float) -> set[int]:
    return {each.digest for each in conversations if split_of(each, val_fraction) == "validation"}


@pytest.mark.parametrize(("val_fraction", "split"), [(0.0, "train"), (1.0, "validation")])
def test_none_or_all_are_held_out(val_fraction: float, split: str) -> None:
    assert {split_of(read(row(str(n))), val_fraction) for n in range(50)} == {split}


def test_a_larger_share_holds_out_the_same_rows_and_more() -> None:
    conversations = [read(row(str(n))) for n in range(400)]
    small, large = (held_out(conversations, share) for share in (0.1, 0.3))
    assert small < large
    assert 20 < len(small) < 60 < len(large) < 180
