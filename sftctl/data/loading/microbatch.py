"""Collate examples of a step into a micro-batch: the tensors of one pass through the model.

The rows of a micro-batch are joined end to end to one long row, without padding between them. The
total length is rounded up to a multiple of `PASS_STEP` tokens, so that only a few shapes occur.

Shapes: T tokens, N target tokens, R rows. All three numbers are rounded up.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from sftctl.data.example import joined_weights
from sftctl.data.storage.joined import JoinedStore
from sftctl.data.store import JoinedRows, TokenStore
from sftctl.model.loss import IGNORE_INDEX

PAD_ID = 0  # any id works: padding is never a target, and real tokens do not attend to padding
PASS_STEP = 128
"""T and N are multiples of this number, so that few shapes occur. The reason: CPU kernels keep some
memory for each new shape and never free it."""
_ROW_SLOTS = 64  # R is a multiple of this number, because compiled code depends on R


class Examples(Protocol):
    """The part of `TokenStore` that the loader needs."""

    lengths: npt.NDArray[np.integer]
    target_lengths: npt.NDArray[np.integer]
    target_weights: npt.NDArray[np.floating] | None

    def __getitem__(self, index: int) -> Any: ...


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows joined end to end. The padding at the end is an additional row without targets."""

    input_ids: torch.Tensor  # (1, T) int64
    position_ids: torch.Tensor  # (1, T) int64, from 0 in each row
    target_positions: torch.Tensor  # (N,) int64: the position before each target; padded with 0
    target_ids: torch.Tensor  # (N,) int64, padded with IGNORE_INDEX
    row_lengths: torch.Tensor  # (R,) int32, their sum is T; padded with 0
    examples: tuple[int, ...]  # store indices of the rows; empty for a filler
    number: int  # index within the step; dropout is seeded by run seed, step and this number
    num_tokens: int  # without the padding at the end
    num_target_tokens: int
    longest_row: int  # in tokens; the row of padding is included
    target_weights: torch.Tensor | None = None  # (N,) float32, padded with 0; None: all are 1

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """The arguments of the model's loss, in order."""
        always = (
            self.input_ids,
            self.position_ids,
            self.target_positions,
            self.target_ids,
            self.row_lengths,
        )
        return always if self.target_weights is None else (*always, self.target_weights)

    @property
    def num_padding_tokens(self) -> int:
        return self.input_ids.numel() - self.num_tokens if self.examples else 0

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the tensors as plain bytes. torch's default, a shared-memory file for each tensor,
        is much slower."""
        arrays = [tensor.numpy() for tensor in self.tensors]
        counts = (self.number, self.num_tokens, self.num_target_tokens, self.longest_row)
        return _from_arrays, (arrays, self.examples, counts)

    def to(self, device: torch.device) -> "MicroBatch":
        """This micro-batch on `device`. From pinned memory, the copy is asynchronous."""
        if self.input_ids.device == device:
            return self
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "MicroBatch":
        """A copy in page-locked memory (DataLoader calls this)."""
        return self._mapped(torch.Tensor.pin_memory)

    def _mapped(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "MicroBatch":
        ids, positions, where, targets, lengths, *weights = map(function, self.tensors)
        return replace(
            self,
            input_ids=ids,
            position_ids=positions,
            target_positions=where,
            target_ids=targets,
            row_lengths=lengths,
            target_weights=weights[0] if weights else None,
        )


def _from_arrays(
    arrays: list[Any], examples: tuple[int, ...], counts: tuple[int, int, int, int]
) -> MicroBatch:
    """A MicroBatch from the arrays of `MicroBatch.tensors`, and its fields `number` to
    `longest_row`."""
    ids, positions, where, targets, lengths, *weights = map(torch.from_numpy, arrays)
    return MicroBatch(ids, positions, where, targets, lengths, examples, *counts, *weights)


@dataclass(frozen=True, slots=True)
class StepBatch:
    """The micro-batches of one rank for one step."""

    epoch: int
    step_in_epoch: int  # 0-based
    num_examples: int  # of the step, over all ranks
    num_target_tokens: int  # of the step, over all ranks
    sum_of_weights: float  # over all targets of the step; the loss is divided by this sum
    micro_batches: tuple[MicroBatch, ...]

    def pin_memory(self) -> "StepBatch":
        """Page-locked micro-batches (DataLoader calls this)."""
        return replace(self, micro_batches=tuple(mb.pin_memory() for mb in self.micro_batches))


def collate(store: Examples, examples: tuple[int, ...], number: int) -> MicroBatch:
    """A micro-batch of these examples of the store. Only this function shifts labels.

    The hidden state at position t predicts token t+1, so a target at token t+1 has position t.
    """
    row_ids, mask, lengths, weights = _read(store, examples)
    num_tokens = len(row_ids)
    size = rounded_up(num_tokens)
    ids = np.empty(size, dtype=np.int64)
    ids[:num_tokens] = row_ids
    ids[num_tokens:] = PAD_ID
    rows, counting = [*lengths, size - num_tokens], _counting(size)
    position_ids = np.concatenate([counting[:length] for length in rows])
    has_token_before = position_ids[:num_tokens] > 0
    targets = (mask & has_token_before).nonzero()[0]
    num_targets = len(targets)
    target_positions = np.zeros(rounded_up(num_targets), dtype=np.int64)
    target_positions[:num_targets] = targets - 1
    target_ids = np.empty(len(target_positions), dtype=np.int64)
    target_ids[:num_targets] = row_ids[targets]
    target_ids[num_targets:] = IGNORE_INDEX
    row_lengths = np.zeros(rounded_up(len(rows), _ROW_SLOTS), dtype=np.int32)
    row_lengths[: len(rows)] = rows
    arrays: list[npt.NDArray[Any]] = [
        ids[None],
        position_ids[None],
        target_positions,
        target_ids,
        row_lengths,
    ]
    if weights is not None:
        target_weights = np.zeros(len(target_ids), dtype=np.float32)
        target_weights[:num_targets] = weights[targets]
        arrays.append(target_weights)
    return _from_arrays(arrays, tuple(examples), (number, num_tokens, num_targets, max(rows)))


@lru_cache(maxsize=8)
def _counting(size: int) -> npt.NDArray[np.int64]:
    """0, 1, 2, …"""
    return np.arange(size)


def _read(store: Examples, examples: Sequence[int]) -> JoinedRows:
    """These examples, joined end to end. Token stores read all of them in one call."""
    if isinstance(store, TokenStore | JoinedStore):
        return store.read(examples)
    rows = [store[index] for index in examples]
    ids = np.concatenate([row.input_ids for row in rows])
    mask = np.concatenate([row.loss_mask for row in rows])
    return JoinedRows(ids, mask, [len(row.input_ids) for row in rows], joined_weights(rows))


def rounded_up(number: int, step: int = PASS_STEP) -> int:
    """The smallest multiple of `step` that is at least `number`."""
    return -(-number // step) * step


def filler_micro_batch(number: int) -> MicroBatch:
    """One row without targets, for a rank without a piece while other ranks still have pieces."""
    ids = np.full((1, PASS_STEP), PAD_ID, dtype=np.int64)
    row_lengths = np.zeros(_ROW_SLOTS, dtype=np.int32)
    row_lengths[0] = PASS_STEP
    nothing = np.zeros(0, dtype=np.int64)
    arrays = [ids, np.arange(PASS_STEP)[None], nothing, nothing, row_lengths]
    return _from_arrays(arrays, (), (number, 0, 0, PASS_STEP))
