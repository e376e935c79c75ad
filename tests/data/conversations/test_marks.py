"""Marks of context and weights, of several tools, are honoured or refused."""

from typing import Any

import pytest

from sftctl.data.conversations.marks import TurnWeights
from sftctl.data.ledger import BadRow
from tests.toys.data import read

USER = {"role": "user", "content": "Hi"}


def context(**fields: Any) -> frozenset[int]:
    answer = {"role": "assistant", "content": "Hello"} | fields
    return read({"messages": [USER, answer]}).untrained


def weights(**fields: Any) -> TurnWeights:
    answer = {"role": "assistant", "content": "Hello"} | fields
    return read({"messages": [USER, answer]}).weights[1]


def part(text: str, **marks: Any) -> dict[str, Any]:
    return {"type": "text", "text": text} | marks


WEIGHTS = ("weight", "loss_scale", "loss_weight")


@pytest.mark.parametrize("key", ["train", "loss", "training", "trainable", "loss_mask", *WEIGHTS])
def test_a_mark_of_a_message_makes_it_context(key: str) -> None:
    assert context(**{key: False}) == context(**{key: 0}) == {1}
    assert context(**{key: True}) == context(**{key: 1}) == context(**{key: None}) == frozenset()
    if key in WEIGHTS:
        assert weights(**{key: 0.5}) == TurnWeights(0.5)
    else:
        with pytest.raises(BadRow, match=f"'{key}' of message 2 is neither 0 nor 1"):
            context(**{key: 0.5})


@pytest.mark.parametrize("key", ["masked", "ignore"])
def test_a_mark_that_leaves_a_message_out(key: str) -> None:
    assert context(**{key: True}) == context(**{key: 1}) == {1}
    assert context(**{key: False}) == context(**{key: None}) == frozenset()
    with pytest.raises(BadRow, match=f"'{key}' of message 2 is neither 0 nor 1"):
        context(**{key: "yes"})


def test_a_switch_does_not_change_a_weight() -> None:
    for on in ({"train": True}, {"loss": 1}, {"masked": False}):
        assert weights(weight=2, **on) == TurnWeights(2)
        assert weights(weight=0.5, **on) == TurnWeights(0.5)
        assert context(weight=0, **on) == {1}
        assert context(weight=2, training=False, **on) == {1}
    assert weights(weight=2, loss_scale=0.5) == TurnWeights(0.5)
    parts = [part("a", weight=2, train=True), part("b")]
    assert weights(content=parts) == TurnWeights(1.0, None, ((1, 2), (1, 1)))


@pytest.mark.parametrize("value", [-0.5, float("inf"), 1e6 + 1, "2", [1]])
def test_a_weight_is_a_number_from_0_to_a_million(value: Any) -> None:
    with pytest.raises(BadRow, match="'weight' of message 2 is not a number from 0 to 1,000,000"):
        context(weight=value)
    with pytest.raises(BadRow, match="'weight' of a part of message 2 is not a number from 0"):
        context(content=[part("a", weight=value)])


def test_weights_of_parts() -> None:
    parts = [part("ab", weight=2), part("c"), part("d", train=False)]
    assert weights(content=parts, weight=0.5) == TurnWeights(0.5, None, ((2, 2), (1, 0.5), (1, 0)))
    thought = {"type": "thinking", "thinking": "hm", "weight": 0.25}
    assert weights(content=[thought, part("a")]) == TurnWeights(1.0, 0.25)
    assert weights(content=[part("a", weight=3), part("b", weight=3)], weight=3) == TurnWeights(3)
    with pytest.raises(BadRow, match="parts of the reasoning of message 2 have different weights"):
        weights(content=[thought, thought | {"weight": 1}, part("a")])


def test_weights_move_with_their_messages() -> None:
    answer = {"role": "assistant", "content": "Hello", "weight": 2}
    assert read({"messages": [USER, answer], "system": "Be kind."}).weights == {2: TurnWeights(2)}
    completed = read({"prompt": [USER], "completion": [answer]})
    assert completed.weights == {1: TurnWeights(2)}


@pytest.mark.parametrize("key", ["train", "weight"])
def test_marks_of_content_parts_are_honoured(key: str) -> None:
    zero, one = {key: 0}, {key: 1}
    assert context(content=[part("a", **zero), part("b", **zero)]) == {1}
    assert context(content=[part("a", **one), part("b")]) == frozenset()
    for other in (one, {}):
        found = weights(content=[part("a", **zero), part("b", **other)])
        assert found == TurnWeights(1.0, None, ((1, 0), (1, 1)))
    with pytest.raises(BadRow, match=f"'{key}' of a part of message 2 is n"):
        context(content=[part("a", **{key: "no"})])


def test_marks_within_a_text_are_refused() -> None:
    detail = [{"begin_offset": 0, "end_offset": 2, "train": False}]
    with pytest.raises(BadRow, match="'train_detail' of message 2 marks parts of the text"):
        context(train_detail=detail)
    assert context(train_detail=None) == context(train_detail=[]) == frozenset()
