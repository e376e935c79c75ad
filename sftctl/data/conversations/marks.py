"""Marks of messages and their parts (ours and other tools'): a mark says "only context", or has a
weight."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sftctl.data.conversations.contents import part_of
from sftctl.data.ledger import BadRow

MAX_WEIGHT = 1e6

_SWITCHES = ("train", "loss", "training", "trainable", "loss_mask")
"""0 or false under such a key makes context: ms-swift's `loss`, axolotl's `training`."""
_OPPOSITES = ("masked", "ignore")
"""1 or true under such a key makes context."""
_WEIGHTS = ("weight", "loss_scale", "loss_weight")
"""Numbers from 0 on: OpenAI's `weight`, ms-swift's `loss_scale`."""
_DETAILS = ("train_detail", "training_detail")
"""axolotl's marks of parts of a text."""
MARKS = (*_SWITCHES, *_OPPOSITES, *_WEIGHTS, *_DETAILS)
"""All keys of a message that mark it."""


MARK_LISTS = ("loss_mask", "loss_masks", "train_mask", "turn_mask")
"""Columns of a row with a mark for each message: 0 makes context."""


@dataclass(frozen=True, slots=True)
class TurnWeights:
    """The weights of one message in the loss."""

    message: float = 1.0
    reasoning: float | None = None  # None: as the message
    parts: tuple[tuple[int, float], ...] = ()
    """(characters, weight) of each part of the content, in order; empty: as the message."""


@dataclass(slots=True)
class Marks:
    """The marks of a row, by message."""

    context: set[int] = field(default_factory=set)  # rendered, but never a target
    weights: dict[int, TurnWeights] = field(default_factory=dict)
    """Only of messages whose weights are not all 1."""

    @classmethod
    def of(cls, turns: list[dict[str, Any]], first: int = 0) -> "Marks":
        """The marks of these messages. The first message has the number `first`. BadRow for marks
        of a meaning that we do not have."""
        found = cls()
        for number, turn in enumerate(turns, first):
            if _is_plain(turn):
                continue
            weights = _weights(turn, f"message {number - first + 1}")
            if weights is None:
                found.context.add(number)
            elif weights != TurnWeights():
                found.weights[number] = weights
        return found


def context_in_column(row: dict[str, Any], num_messages: int, used: list[str]) -> set[int]:
    """The messages that a column of marks makes context. BadRow if the column does not have one
    mark for each message.

    The column is added to `used`.
    """
    key = next((key for key in MARK_LISTS if row.get(key)), None)
    if key is None:
        return set()
    marks = row[key]
    if (
        not isinstance(marks, list)
        or len(marks) != num_messages
        or any(mark not in (0, 1) for mark in marks)
    ):
        raise BadRow(
            "bad_shape",
            f"{key!r} is not a list with 0 or 1 for each message",
            'mark the messages themselves: "train": false',
        )
    used.append(key)
    return {number for number, mark in enumerate(marks) if not mark}


def _is_plain(turn: dict[str, Any]) -> bool:
    """Whether a message has only a role and a text, as most messages have. A quick check."""
    return len(turn) == 2 and not isinstance(turn.get("content"), list)


def _weights(turn: dict[str, Any], where: str) -> TurnWeights | None:
    """The weights of a message. None: the message is context."""
    for key in _DETAILS:
        if turn.get(key):
            raise BadRow(
                "bad_shape",
                f"{key!r} of {where} marks parts of its text by characters",
                "make them content parts, each with a weight",
            )
    marked = [(part, _lowest(part, f"a part of {where}")) for part in _parts(turn)]
    own = _lowest(turn, where)
    if own == 0 or (marked and all(weight == 0 for _, weight in marked)):
        return None
    message = 1.0 if own is None else own
    if all(weight in (None, message) for _, weight in marked):
        return TurnWeights(message)
    texts, reasoning = list[tuple[int, float]](), set[float]()
    for part, weight in marked:
        is_reasoning, text = part_of(part, "content")
        if is_reasoning:
            reasoning.add(message if weight is None else weight)
        else:
            texts.append((len(text), message if weight is None else weight))
    if len(reasoning) > 1:
        raise BadRow("bad_shape", f"parts of the reasoning of {where} have different weights")
    are_equal = {weight for _, weight in texts} <= {message}
    return TurnWeights(message, next(iter(reasoning), None), () if are_equal else tuple(texts))


def _parts(turn: dict[str, Any]) -> list[Any]:
    content = turn.get("content")
    return content if isinstance(content, list) else []


def _lowest(fields: object, where: str) -> float | None:
    """The weight from the marks: 0 if a mark is 0, or else the lowest number; None without marks. A
    switch that is on has no weight, so it does not change the weight of another mark.
    """
    if not isinstance(fields, dict):
        return None
    switches = [*_switches(fields, where)]
    weights = [*_numbers(fields, where)]
    if not all(switches):
        return 0.0
    return min(weights) if weights else (1.0 if switches else None)


def _switches(fields: dict[str, Any], where: str) -> Iterator[bool]:
    for key in (*_SWITCHES, *_OPPOSITES):
        value = fields.get(key)
        if value is None:
            continue
        if value not in (0, 1):
            raise BadRow("bad_shape", f"{key!r} of {where} is neither 0 nor 1")
        yield bool(value) != (key in _OPPOSITES)


def _numbers(fields: dict[str, Any], where: str) -> Iterator[float]:
    for key in _WEIGHTS:
        value = fields.get(key)
        if value is None:
            continue
        is_number = isinstance(value, (int, float)) and math.isfinite(value)
        if not is_number or not 0 <= value <= MAX_WEIGHT:
            raise BadRow(
                "bad_shape",
                f"{key!r} of {where} is not a number from 0 to {MAX_WEIGHT:,.0f}",
            )
        yield float(value)


def moved(weights: Mapping[int, TurnWeights], numbers: Iterable[int]) -> dict[int, TurnWeights]:
    """The weights of the messages `numbers`, which are kept, by their new numbers (from 0)."""
    return {new: weights[old] for new, old in enumerate(numbers) if old in weights}
