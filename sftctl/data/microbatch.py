"""Collates a step's examples into micro-batches, the tensors that the model takes.

Shapes: B rows, T tokens of the longest row, N target tokens of the micro-batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

PAD_ID = 0  # any id works: padding is never a target, and no real token attends to it


class Examples(Protocol):
    """The part of `TokenStore` that the loader needs."""

    lengths: npt.NDArray[np.integer]
    target_lengths: npt.NDArray[np.integer]

    def __getitem__(self, index: int) -> Any: ...


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows of similar length, padded on the right, so that causal attention needs no mask."""

    input_ids: torch.Tensor  # (B, T) int64
    target_positions: (
        torch.Tensor
    )  # (N,) int64, into the flattened (B*T): positions before a target
    target_ids: torch.Tensor  # (N,) int64
    row_lengths: torch.Tensor  # (B,) int64, without padding
    examples: tuple[int, ...]  # store indices of the rows; empty for a filler
    number: int  # within the step's cut; with seed and step it seeds dropout
    num_tokens: int  # without padding

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """The arguments of the model's loss, in order."""
        return self.input_ids, self.target_positions, self.target_ids, self.row_lengths

    @property
    def num_padding_tokens(self) -> int:
        return self.input_ids.numel() - self.num_tokens if self.examples else 0

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as plain bytes: torch's shared-memory file per tensor costs far more."""
        arrays = [tensor.numpy() for tensor in self.tensors]
        return _from_arrays, (arrays, self.examples, self.number, self.num_tokens)

    def to(self, device: torch.device) -> "MicroBatch":
        """Itself if it is on the device, else a copy, made asynchronously from pinned memory."""
        if self.input_ids.device == device:
            return self
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "MicroBatch":
        """A copy in page-locked memory (DataLoader calls this)."""
        return self._mapped(torch.Tensor.pin_memory)

    def _mapped(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "MicroBatch":
        ids, positions, targets, lengths = map(function, self.tensors)
        return MicroBatch(
            ids, positions, targets, lengths, self.examples, self.number, self.num_tokens
        )


def _from_arrays(
    arrays: list[Any], examples: tuple[int, ...], number: int, num_tokens: int
) -> MicroBatch:
    ids, positions, targets, lengths = map(torch.from_numpy, arrays)
    return MicroBatch(ids, positions, targets, lengths, examples, number, num_tokens)


@dataclass(frozen=True, slots=True)
class StepBatch:
    """One rank's part of one step."""

    epoch: int
    step_in_epoch: int  # 0-based
    num_examples: int  # of the step, over all ranks
    num_target_tokens: int  # of the step, over all ranks
    micro_batches: tuple[MicroBatch, ...]

    def pin_memory(self) -> "StepBatch":
        """Page-locked micro-batches (DataLoader calls this)."""
        return replace(self, micro_batches=tuple(mb.pin_memory() for mb in self.micro_batches))


def collate(
    store: Examples, examples: tuple[int, ...], number: int, pad_to_multiple_of: int = 1
) -> MicroBatch:
    """Collate rows of the store into one micro-batch."""
    return collate_all(store, [(examples, number)], pad_to_multiple_of)[0]


def collate_all(
    store: Examples,
    groups: Sequence[tuple[tuple[int, ...], int]],
    pad_to_multiple_of: int = 1,
) -> list[MicroBatch]:
    """One micro-batch for each (examples, number). Only this function shifts labels.

    The hidden state at position t predicts token t+1, so a target at token t+1 has position t.
    All micro-batches share one piece of memory, which keeps the work per micro-batch small.
    """
    rows = [[store[index] for index in examples] for examples, _ in groups]
    lengths = [[len(row.input_ids) for row in group] for group in rows]
    widths = [-(-max(each) // pad_to_multiple_of) * pad_to_multiple_of for each in lengths]
    ends = [*accumulate(w * len(group) for w, group in zip(widths, rows, strict=True))]
    ids, targets = _laid_out(rows, widths, ends[-1] if ends else 0)
    positions = np.flatnonzero(targets)  # never a row's last column, so +1 stays in the row
    target_ids = ids[positions + 1]
    cuts = positions.searchsorted(ends).tolist()
    batches, start, first = [], 0, 0
    for (examples, number), width, each, end, last in zip(
        groups, widths, lengths, ends, cuts, strict=True
    ):
        batches.append(
            _from_arrays(
                [
                    ids[start:end].reshape(-1, width),
                    positions[first:last] - start,
                    target_ids[first:last],
                    np.array(each, dtype=np.int64),
                ],
                examples,
                number,
                sum(each),
            )
        )
        start, first = end, last
    return batches


def _laid_out(
    rows: list[list[Any]], widths: list[int], size: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """All micro-batches' ids (B, T), flattened and joined; True at positions before a target."""
    ids = np.full(size, PAD_ID, dtype=np.int64)
    targets = np.zeros(size, dtype=np.bool_)
    start = 0
    for group, width in zip(rows, widths, strict=True):
        for row in group:
            end = start + len(row.input_ids)
            ids[start:end] = row.input_ids
            targets[start : end - 1] = row.loss_mask[1:]
            start += width
    return ids, targets


def filler_micro_batch(number: int) -> MicroBatch:
    """One row without targets, for a rank that has no piece while the other ranks have one."""
    nothing = torch.zeros(0, dtype=torch.int64)
    row = torch.full((1, 2), PAD_ID)
    return MicroBatch(row, nothing, nothing, torch.tensor([2]), (), number, 0)
