"""Weights of tokens: the characters of a rendered turn to which the weights of a message and its
parts apply.

The tokens of a part have the part's weight. The reasoning, with the white space around it, has a
weight of its own. The rest of a turn, with its end, has the weight of the message. If a part or the
reasoning cannot be found exactly, the row is dropped.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from sftctl.data.conversations.conversation import Conversation
from sftctl.data.conversations.marks import TurnWeights
from sftctl.data.ledger import BadRow
from sftctl.data.masks.thinking import reasoning_span, thought_of
from sftctl.model.tokenizer.encoders import Span

_HINT = "give the complete message one weight"


class Weighted(NamedTuple):
    """Characters of a text that have a weight. If two spans overlap, the later one in the list
    counts."""

    span: Span
    weight: float


def with_reasoning_weight(row: Conversation, weight: float) -> Conversation:
    """The conversation, where reasoning without a weight gets its message's weight times
    `weight`."""
    if weight == 1:
        return row
    weights = dict(row.weights)
    for turn in row.target_turns:
        known = weights.get(turn, TurnWeights())
        if known.reasoning is None and thought_of(row.messages[turn]) is not None:
            weights[turn] = replace(known, reasoning=known.message * weight)
    return replace(row, weights=weights)


def weights_of_turn(row: Conversation, turn: int, text: str, start: int) -> Iterator[Weighted]:
    """The weights of characters in `text`, the template's text of a message, from `start` on."""
    weights = row.weights.get(turn)
    if weights is None:
        return
    if weights.message != 1:
        yield Weighted((start, start + len(text)), weights.message)
    if weights.parts:
        yield from _of_parts(row, turn, weights, text, start)
    if weights.reasoning is not None and (thought := thought_of(row.messages[turn])) is not None:
        span = reasoning_span(text, thought.text)
        if span is None:
            raise _unclear(row, turn, "reasoning")
        yield Weighted((start + span[0], start + span[1]), weights.reasoning)


def _of_parts(
    row: Conversation, turn: int, weights: TurnWeights, text: str, start: int
) -> Iterator[Weighted]:
    message: dict[str, Any] = row.messages[turn]
    content: str = message["content"]
    stripped = content.strip()
    at = text.rfind(stripped)
    if at < 0 or sum(length for length, _ in weights.parts) != len(content):
        raise _unclear(row, turn, "parts of the content")
    end = -(len(content) - len(content.lstrip()))  # of the part before, in `stripped`
    for length, weight in weights.parts:
        begin, end = end, end + length
        inside = max(begin, 0), min(end, len(stripped))
        if inside[0] < inside[1]:
            yield Weighted((start + at + inside[0], start + at + inside[1]), weight)


def _unclear(row: Conversation, turn: int, what: str) -> BadRow:
    return BadRow(
        "mask_not_exact",
        f"{row.source}: message {turn + 1}: the {what}, which have a weight, are not in what the "
        "chat template writes of this turn",
        _HINT,
    )
