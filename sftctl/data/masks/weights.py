"""Find the characters of a rendered turn that have a weight in the loss.

The characters of a content part have the weight of the part. The reasoning, and the white space
around it, can have another weight. All other characters of the turn have the weight of the message.
If a part or the reasoning can't be found exactly, the row is dropped.
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
    """A span of characters and its weight. If spans of a list overlap, the last span counts."""

    span: Span
    weight: float


def with_reasoning_weight(row: Conversation, weight: float) -> Conversation:
    """The conversation with a weight for reasoning: the weight of its message times `weight`.

    Reasoning that already has a weight keeps it.
    """
    if weight == 1:
        return row
    weights = dict(row.weights)
    for turn in row.target_turns:
        known = weights.get(turn, TurnWeights())
        if known.reasoning is None and thought_of(row.messages[turn]) is not None:
            weights[turn] = replace(known, reasoning=known.message * weight)
    return replace(row, weights=weights)


def weights_of_turn(row: Conversation, turn: int, text: str, start: int) -> Iterator[Weighted]:
    """The weights of characters in `text`, the rendered turn, which begins at character `start`.

    Raises BadRow if a part or the reasoning is not found in `text`.
    """
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
    end = -(len(content) - len(content.lstrip()))  # where the previous part ends in `stripped`
    for length, weight in weights.parts:
        begin, end = end, end + length
        inside = max(begin, 0), min(end, len(stripped))
        if inside[0] < inside[1]:
            yield Weighted((start + at + inside[0], start + at + inside[1]), weight)


def _unclear(row: Conversation, turn: int, what: str) -> BadRow:
    return BadRow(
        "mask_not_exact",
        f"{row.source}: message {turn + 1}: the {what} with a weight can't be found in the text "
        "that the chat template writes for this turn",
        _HINT,
    )
