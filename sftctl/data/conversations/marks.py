"""Marks: keys of a message, or of a part of its content, that change its loss.

`"train": false` makes a message context: the model reads it, but it is not trained.
`"weight": 0.5` multiplies the loss of a message. Keys of other tools are read too.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sftctl.data.conversations.contents import part_of
from sftctl.data.ledger import BadRow

MAX_WEIGHT = 1e6

_SWITCHES = ("train", "loss", "training", "trainable", "loss_mask", "output_with_loss")
"""0 or false makes a message context. ms-swift uses `loss`, axolotl `training`, xtuner
`output_with_loss`."""
_OPPOSITES = ("masked", "ignore")
"""1 or true makes a message context."""
_WEIGHTS = ("weight", "loss_scale", "loss_weight")
"""A number, at least 0. OpenAI uses `weight`, ms-swift uses `loss_scale`."""
_DETAILS = ("train_detail", "training_detail")
"""axolotl's marks for parts of a text. They are refused."""
MARKS = (*_SWITCHES, *_OPPOSITES, *_WEIGHTS, *_DETAILS)
"""All keys that are marks."""


MARK_LISTS = ("loss_mask", "loss_masks", "train_mask", "turn_mask")
"""Columns of a row with one number for each message: 0 makes the message context."""


@dataclass(frozen=True, slots=True)
class TurnWeights:
    """The weights of one message in the loss."""

    message: float = 1.0
    reasoning: float | None = None  # None: the weight of the message
    parts: tuple[tuple[int, float], ...] = ()
    """(number of characters, weight) of each part of the content, in order. Empty: all parts have
    the weight of the message."""


@dataclass(slots=True)
class Marks:
    """The meaning of the marks of a row, by message number."""

    context: set[int] = field(default_factory=set)  # messages that are read but not trained
    weights: dict[int, TurnWeights] = field(default_factory=dict)
    """A message without an entry has weight 1."""

    @classmethod
    def of(cls, turns: list[dict[str, Any]], first: int = 0) -> "Marks":
        """The marks of these messages. The first message has the number `first`.

        Raises BadRow for a mark that sftctl does not support.
        """
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
    """The numbers of the messages that are context, from a column such as `loss_mask`.

    The column is added to `used`. Raises BadRow if it does not have 0 or 1 for each message.
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
            'put "train": false into the messages instead',
        )
    used.append(key)
    return {number for number, mark in enumerate(marks) if not mark}


def _is_plain(turn: dict[str, Any]) -> bool:
    """Whether a message has only a role and a text. Most messages do, so this check saves time."""
    return len(turn) == 2 and not isinstance(turn.get("content"), list)


def _weights(turn: dict[str, Any], where: str) -> TurnWeights | None:
    """The weights of a message. None: the message is context."""
    for key in _DETAILS:
        if turn.get(key):
            raise BadRow(
                "bad_shape",
                f"{key!r} of {where} marks parts of the text by character positions",
                "split the content into parts, each with a weight",
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
    """The weight that the marks in `fields` give; None if there are no marks.

    A switch that is off gives 0. Otherwise the lowest weight counts. Without a weight, a switch
    that is on gives 1.
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
    """The weights by new message numbers, if only the messages `numbers` of a row are kept."""
    return {new: weights[old] for new, old in enumerate(numbers) if old in weights}
