"""Tokenized conversations: a single example, and many examples as arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Weights = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class TokenizedExample:
    """One tokenized conversation of T tokens."""

    input_ids: npt.NDArray[np.int32]  # (T,)
    loss_mask: npt.NDArray[np.bool_]  # (T,) True: the loss counts this token
    loss_weights: Weights | None = None  # (T,), above 0 where the mask is True; None: all are 1
    turn_mask: Mask | None = None
    """(T,) True: the token is in a trained turn. The loss mask excludes tokens with weight 0, this
    mask does not. None: equal to the loss mask. Not stored."""

    def first(self, num_tokens: int) -> "TokenizedExample":
        """The example cut to its first tokens."""
        return self.part(0, num_tokens)

    def part(self, start: int, end: int) -> "TokenizedExample":
        """The part of the example from token `start` to `end`, exclusive."""
        weights = None if self.loss_weights is None else self.loss_weights[start:end]
        turns = None if self.turn_mask is None else self.turn_mask[start:end]
        ids, mask = self.input_ids[start:end], self.loss_mask[start:end]
        return TokenizedExample(ids, mask, weights, turns)

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def num_target_tokens(self) -> int:
        return int(np.count_nonzero(self.loss_mask))


@dataclass(frozen=True, slots=True, eq=False)
class ExampleArrays:
    """N examples joined end to end, T tokens in total. Processes exchange examples in this form."""

    input_ids: npt.NDArray[np.int32]  # (T,)
    loss_mask: npt.NDArray[np.bool_]  # (T,)
    lengths: npt.NDArray[np.int32]  # (N,)
    target_lengths: npt.NDArray[np.int32]  # (N,)
    loss_weights: Weights | None = None  # (T,); None: all weights are 1
    turn_mask: Mask | None = None  # (T,); None: equal to the loss mask

    @property
    def target_weights(self) -> npt.NDArray[np.float64]:
        """The sum of the weights of each example's targets: (N,)."""
        if self.loss_weights is None:
            return self.target_lengths.astype(np.float64)
        return sums_of_weights(self.loss_weights, self.lengths)

    @classmethod
    def pack(cls, examples: Sequence[TokenizedExample]) -> "ExampleArrays":
        """Copy the arrays of the examples into joined arrays."""
        ids = [np.empty(0, dtype=np.int32), *(example.input_ids for example in examples)]
        masks = [np.empty(0, dtype=np.bool_), *(example.loss_mask for example in examples)]
        targets = [example.num_target_tokens for example in examples]
        lengths = np.array([example.num_tokens for example in examples], dtype=np.int32)
        return cls(
            np.concatenate(ids),
            np.concatenate(masks),
            lengths,
            np.array(targets, dtype=np.int32),
            joined_weights(examples),
            _joined_turns(examples),
        )


def _joined_turns(examples: Sequence[TokenizedExample]) -> Mask | None:
    if all(example.turn_mask is None for example in examples):
        return None
    pairs = ((example.turn_mask, example.loss_mask) for example in examples)
    return np.concatenate([mask if turns is None else turns for turns, mask in pairs])


class _Weighted(Protocol):
    @property
    def loss_mask(self) -> npt.NDArray[np.bool_]: ...
    @property
    def loss_weights(self) -> Weights | None: ...


def joined_weights(parts: Sequence[_Weighted]) -> Weights | None:
    """The weights of examples joined end to end; None if all are 1."""
    if all(part.loss_weights is None for part in parts):
        return None
    return np.concatenate(
        [
            p.loss_mask.astype(np.float32) if p.loss_weights is None else p.loss_weights
            for p in parts
        ]
    )


def sums_of_weights(weights: Weights, lengths: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    """The sum of the weights of each of N examples joined end to end, in float64: (N,)."""
    ends = np.cumsum(lengths, dtype=np.int64)
    pairs = zip(ends - lengths, ends, strict=True)
    return np.array([weights[a:b].sum(dtype=np.float64) for a, b in pairs], dtype=np.float64)
