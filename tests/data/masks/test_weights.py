"""Weights of messages, content parts and reasoning: which tokens have them, and what is refused."""

from typing import Any

import numpy as np
import pytest

from sftctl.config.schema import TrainOn
from sftctl.data.example import ExampleArrays, TokenizedExample
from sftctl.data.ledger import BadRow
from sftctl.data.masks.encode import tokenize
from sftctl.data.masks.overflow import ExampleMaker
from sftctl.data.masks.shortcut import Renderer
from sftctl.data.masks.weights import with_reasoning_weight
from sftctl.data.prepare.audit import audit
from sftctl.model.tokenizer.tokenizer import ChatTokenizer
from tests.toys.data import CountingTokenizer
from tests.toys.masks import conversation

USER = {"role": "user", "content": "Hi"}
THOUGHT = "<think>\nHi to you?\n</think>\n\nHello there"


def answer(content: object, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content} | fields


def parts(*texts_and_weights: tuple[str, float | None]) -> list[dict[str, Any]]:
    return [
        {"type": "text", "text": text} | ({} if weight is None else {"weight": weight})
        for text, weight in texts_and_weights
    ]


def pieces(example: TokenizedExample, tokenizer: ChatTokenizer) -> list[tuple[str, float]]:
    """The trained texts with their weights, in order."""
    weights = example.loss_weights
    if weights is None:
        weights = example.loss_mask.astype(np.float32)
    assert np.array_equal(weights > 0, example.loss_mask)
    edges = np.flatnonzero(np.diff(weights)) + 1
    texts = (tokenizer.decode(ids) for ids in np.split(example.input_ids, edges))
    found = zip(texts, weights[[0, *edges]].tolist(), strict=True)
    return [(text, weight) for text, weight in found if weight]


def weighted(
    tokenizer: ChatTokenizer,
    *messages: dict[str, Any],
    reasoning_weight: float = 1.0,
    train_on: TrainOn = "assistant",
) -> list[tuple[str, float]]:
    row = with_reasoning_weight(conversation(messages), reasoning_weight)
    [example] = tokenize(row, tokenizer, train_on)
    return pieces(example, tokenizer)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (answer("Hello", weight=0.5), [("Hello<|im_end|>", 0.5)]),
        (answer("Hello", weight=1), [("Hello<|im_end|>", 1.0)]),
        (
            answer(parts(("Yes.", None), (" And no.", 2))),
            [("Yes.", 1.0), (" And no.", 2.0), ("<|im_end|>", 1.0)],
        ),
        (
            answer(parts(("Yes.", 0), (" And no.", 2), (" Bye", None)), weight=0.5),
            [(" And no.", 2.0), (" Bye<|im_end|>", 0.5)],
        ),
        (
            answer(parts(("Yes.", 0), (" And no.", None))),
            [(" And no.<|im_end|>", 1.0)],
        ),
    ],
)
def test_messages_and_parts(
    chatml: CountingTokenizer, message: dict[str, Any], expected: list[tuple[str, float]]
) -> None:
    assert weighted(chatml, USER, message) == expected
    later = [USER, answer("Plain")]
    assert weighted(chatml, USER, message, *later) == [*expected, ("Plain<|im_end|>", 1.0)]


def test_reasoning_has_a_weight_of_its_own(chatml: CountingTokenizer) -> None:
    tags = [("<think>", 1.0), ("</think>\n\nHello there<|im_end|>", 1.0)]
    found = weighted(chatml, USER, answer(THOUGHT), reasoning_weight=0.25)
    assert found == [tags[0], ("\nHi to you?\n", 0.25), tags[1]]
    assert weighted(chatml, USER, answer(THOUGHT), reasoning_weight=0.0) == tags
    twice = weighted(chatml, USER, answer(THOUGHT, weight=2), reasoning_weight=0.25)
    assert [weight for _, weight in twice] == [2.0, 0.5, 2.0]
    plain = weighted(chatml, USER, answer("Hello"), reasoning_weight=0.25)
    assert plain == [("Hello<|im_end|>", 1.0)]


def test_reasoning_in_a_field_and_in_a_part(thinking_minimind: ChatTokenizer) -> None:
    expected = ["<think>", "\nhm\n", "</think>\n\nYes<|im_end|>"]
    thought = answer("Yes", reasoning_content="hm")
    found = weighted(thinking_minimind, USER, thought, reasoning_weight=0.5)
    assert [text for text, _ in found] == expected
    assert [weight for _, weight in found] == [1.0, 0.5, 1.0]
    part = {"type": "thinking", "thinking": "hm", "weight": 3}
    found = weighted(
        thinking_minimind, USER, answer([part, *parts(("Yes", None))]), reasoning_weight=0.5
    )
    assert [weight for _, weight in found] == [1.0, 3.0, 1.0]


def test_with_train_on_all_every_message_can_have_a_weight(chatml: CountingTokenizer) -> None:
    found = weighted(chatml, USER | {"weight": 0.5}, answer("Hello", weight=2), train_on="all")
    assert found == [
        ("user\nHi<|im_end|>\n", 0.5),
        ("<|im_start|>assistant\nHello<|im_end|>\n", 2.0),
    ]


def test_a_token_in_two_parts_drops_the_row(chatml: CountingTokenizer) -> None:
    row = answer(parts(("Hel", None), ("lo", 2)))
    with pytest.raises(BadRow, match="a token is half inside a part that has another weight") as it:
        weighted(chatml, USER, row)
    assert it.value.reason == "mask_not_exact"


def test_a_row_whose_weights_are_all_0_has_no_target(chatml: CountingTokenizer) -> None:
    row = conversation([USER, answer(THOUGHT, weight=0)])
    with pytest.raises(BadRow, match="no assistant turn to train on"):
        tokenize(row, chatml, "assistant")


def test_a_store_of_zeros_and_ones_has_no_weights(chatml: CountingTokenizer) -> None:
    row = conversation([USER, answer(parts(("Yes.", 0), (" And no.", None)))])
    [example] = tokenize(row, chatml, "assistant")
    assert example.loss_weights is None
    assert ExampleArrays.pack([example]).loss_weights is None


def test_the_audit_counts_weighted_tokens_and_a_part_of_weight_0_ends_no_turn(
    chatml: CountingTokenizer,
) -> None:
    rows = [
        answer(parts(("Yes.", None), (" And no.", 0), (" Bye", 2))),
        answer(THOUGHT),
    ]
    examples = [
        example
        for row in rows
        for example in tokenize(
            with_reasoning_weight(conversation([USER, row]), 0.0), chatml, "assistant"
        )
    ]
    found = audit(ExampleArrays.pack(examples), chatml, 100, "assistant")
    assert (found.turns, found.turns_without_end, found.passed) == (2, 0, True)
    bye = len(chatml.encode(" Bye"))
    assert found.targets_weighted == bye


def test_weights_stay_with_their_messages_in_a_split_row(chatml: CountingTokenizer) -> None:
    messages = [m for n in range(6) for m in (USER, answer(f"Number {n}", weight=n + 0.5))]
    row = conversation(messages)
    [whole] = tokenize(row, chatml, "assistant")
    maker = ExampleMaker(chatml, Renderer(chatml, "assistant"), whole.num_tokens // 2, "split")
    examples, _ = maker.examples(row)
    assert len(examples) > 1
    found = [piece for example in examples for piece in pieces(example, chatml)]
    assert found == pieces(whole, chatml)
