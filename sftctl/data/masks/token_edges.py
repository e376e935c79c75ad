"""Where targets begin and end in tokens, from the bytes that each token stands for.

This encodes a text once. Comparing the text with its pieces would encode it twice.
"""

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np

from sftctl.data.example import Mask
from sftctl.model.tokenizer.encoders import Ids, Span, TokenBytes
from sftctl.model.tokenizer.tokenizer import ChatTokenizer

_TAIL = 16
"""Tokens at the end of a prompt that are encoded again."""

_EQUAL = 8
"""At least this many of them must be equal if the tail begins in the middle of a text."""

_MOST_TAILS = 1000
"""Tails whose result is kept."""


def mask_from_bytes(
    text: str, targets: Sequence[Span], tokenizer: ChatTokenizer, ids: Ids
) -> Mask | None:
    """The mask of `ids`, which `text` was encoded to; None if that can't be proved this way.

    Three things are needed for each target. It begins and ends between two tokens. It ends with a
    special token, which no encoder joins with other text. The end of the prompt before it becomes
    the same tokens when it is encoded alone, as at inference.
    """
    table = tokenizer.token_bytes
    ends = None if table is None else table.ends(ids, text)
    if table is None or ends is None:
        return None
    edges = [*_in_bytes(text, chain.from_iterable(targets))]
    after = np.searchsorted(ends, edges, side="right").tolist()  # tokens that end there or before
    if any(edge and ends[n - 1] != edge for edge, n in zip(edges, after, strict=True)):
        return None
    mask = np.zeros(len(ids), dtype=np.bool_)
    for first, end in zip(after[::2], after[1::2], strict=True):
        ends_apart = end == len(ids) or int(ids[end - 1]) in tokenizer.special_ids
        if not ends_apart or not _is_as_prompted(ids[:first], table, tokenizer):
            return None
        mask[first:end] = True
    return mask


def _in_bytes(text: str, positions: Iterator[int]) -> Iterator[int]:
    """Positions in the text, in order, counted in bytes of UTF-8."""
    if text.isascii():
        yield from positions
        return
    done = num_bytes = 0
    for position in positions:
        num_bytes += len(text[done:position].encode())
        done = position
        yield num_bytes


def _is_as_prompted(prompt: Ids, table: TokenBytes, tokenizer: ChatTokenizer) -> bool:
    """Whether the last tokens of a prompt stay the same when no text follows."""
    tail: list[int] = []  # after the last special token
    is_complete = len(prompt) <= _TAIL
    for token in prompt[: -_TAIL - 1 : -1].tolist():
        if token in tokenizer.special_ids:
            is_complete = True
            break
        tail.append(token)
    tail.reverse()
    key = (int(is_complete), *tail)
    if key not in table.same_alone:
        if len(table.same_alone) >= _MOST_TAILS:
            table.same_alone.clear()
        try:
            alone = tokenizer.encode(table.joined(tail).decode()).tolist()
        except UnicodeDecodeError:  # the tail begins inside a character
            return False
        num_equal = len(tail) if is_complete else _EQUAL
        table.same_alone[key] = alone[-num_equal:] == tail[-num_equal:]
    return table.same_alone[key]
