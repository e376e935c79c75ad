"""Tokenized conversations: one alone, and many as arrays."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, eq=False)
class TokenizedExample:
    """One tokenized conversation of T tokens."""

    input_ids: npt.NDArray[np.int32]  # (T,)
    loss_mask: npt.NDArray[np.bool_]  # (T,) True: the loss counts this token

    def first(self, num_tokens: int) -> "TokenizedExample":
        """The example's first tokens."""
        return TokenizedExample(self.input_ids[:num_tokens], self.loss_mask[:num_tokens])

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def num_target_tokens(self) -> int:
        return int(np.count_nonzero(self.loss_mask))


@dataclass(frozen=True, slots=True, eq=False)
class ExampleArrays:
    """N examples joined end to end, T tokens in total: the form that processes exchange."""

    input_ids: npt.NDArray[np.int32]  # (T,)
    loss_mask: npt.NDArray[np.bool_]  # (T,)
    lengths: npt.NDArray[np.int32]  # (N,)
    target_lengths: npt.NDArray[np.int32]  # (N,)

    @classmethod
    def pack(cls, examples: Sequence[TokenizedExample]) -> "ExampleArrays":
        """Join copies of the examples' arrays."""
        ids = [np.empty(0, dtype=np.int32), *(example.input_ids for example in examples)]
        masks = [np.empty(0, dtype=np.bool_), *(example.loss_mask for example in examples)]
        targets = [example.num_target_tokens for example in examples]
        lengths = np.array([example.num_tokens for example in examples], dtype=np.int32)
        return cls(
            np.concatenate(ids), np.concatenate(masks), lengths, np.array(targets, dtype=np.int32)
        )
