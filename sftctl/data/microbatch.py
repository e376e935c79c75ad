"""What a step hands to the model: its examples collated into micro-batches.

Shapes: B rows, T tokens of the longest row, N target tokens of the micro-batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

PAD_ID = 0  # never a target and never attended to by a real token: any id does


class Examples(Protocol):
    """What the loader needs of a store: `TokenStore` has it."""

    lengths: npt.NDArray[np.integer]
    target_lengths: npt.NDArray[np.integer]

    def __getitem__(self, index: int) -> Any: ...


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows of near-equal length, right-padded, so causal attention needs no mask."""

    input_ids: torch.Tensor  # (B, T) int64
    target_positions: torch.Tensor  # (N,) int64, into the flattened (B*T): where a target is next
    target_ids: torch.Tensor  # (N,) int64
    row_lengths: torch.Tensor  # (B,) int64, without padding
    examples: tuple[int, ...]  # store indices of the rows; none for a row that only keeps step
    number: int  # within the step's cut: with seed and step it names the randomness
    num_tokens: int  # without padding

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """What the model's loss takes, in its order."""
        return self.input_ids, self.target_positions, self.target_ids, self.row_lengths

    @property
    def num_padding_tokens(self) -> int:
        return self.input_ids.numel() - self.num_tokens if self.examples else 0

    def __reduce__(self) -> tuple[Any, ...]:
        """From a loader process as plain bytes: a shared-memory file per tensor costs far more."""
        arrays = [tensor.numpy() for tensor in self.tensors]
        return _from_arrays, (arrays, (self.examples, self.number, self.num_tokens))

    def to(self, device: torch.device) -> "MicroBatch":
        """On the device: itself where it is there, else a copy, asynchronous from pinned memory."""
        if self.input_ids.device == device:
            return self
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "MicroBatch":
        """A copy in page-locked memory (DataLoader calls this)."""
        return self._mapped(torch.Tensor.pin_memory)

    def _mapped(self, function: Any) -> "MicroBatch":
        plain = (self.examples, self.number, self.num_tokens)
        return _micro_batch([function(tensor) for tensor in self.tensors], plain)


def _from_arrays(arrays: list[Any], plain: tuple[Any, ...]) -> MicroBatch:
    return _micro_batch([torch.from_numpy(array) for array in arrays], plain)


def _micro_batch(tensors: list[Any], plain: tuple[Any, ...]) -> MicroBatch:
    return MicroBatch(*tensors, *plain)


@dataclass(frozen=True, slots=True)
class StepBatch:
    """One rank's part of one step."""

    epoch: int
    step_in_epoch: int  # 0-based
    num_examples: int  # of the whole step, all ranks
    num_target_tokens: int  # of the whole step, all ranks
    micro_batches: tuple[MicroBatch, ...]

    def pin_memory(self) -> "StepBatch":
        """Page-locked micro-batches (DataLoader calls this)."""
        return replace(self, micro_batches=tuple(mb.pin_memory() for mb in self.micro_batches))


def collate(
    store: Examples, examples: tuple[int, ...], number: int, pad_to_multiple_of: int = 1
) -> MicroBatch:
    """Rows from the store into one micro-batch."""
    return collate_all(store, [(examples, number)], pad_to_multiple_of)[0]


def collate_all(
    store: Examples,
    groups: Sequence[tuple[tuple[int, ...], int]],
    pad_to_multiple_of: int = 1,
) -> list[MicroBatch]:
    """A micro-batch of each (examples, number): the only place that shifts labels.

    The hidden state at position t predicts token t+1, so a target at token t+1 is looked for at t.
    All lie one after the other in one piece of memory, for then the work per micro-batch is small.
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
                (examples, number, sum(each)),
            )
        )
        start, first = end, last
    return batches


def _laid_out(
    rows: list[list[Any]], widths: list[int], size: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Every (B, T) of ids, flattened, one after the other; True where a target comes next."""
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


def keeping_step(number: int) -> MicroBatch:
    """One row without a target, for a rank short of a piece: the others wait for it."""
    nothing = torch.zeros(0, dtype=torch.int64)
    row = torch.full((1, 2), PAD_ID)
    return MicroBatch(row, nothing, nothing, torch.tensor([2]), (), number, 0)
