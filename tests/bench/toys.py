import os
import signal
from dataclasses import dataclass

import numpy as np
from torch.utils.data import get_worker_info

from sftctl.data.loader import StepShape

SHAPE = StepShape(
    seed=0, global_batch_size=4, micro_batch_tokens=64, cut_for_ranks=1, rank=0, world_size=1
)


@dataclass
class Row:
    input_ids: np.ndarray
    loss_mask: np.ndarray


class Toy:
    """Ten short examples, never read from a disk."""

    lengths = np.arange(3, 13, dtype=np.int32)
    target_lengths = lengths - 1

    def __getitem__(self, index: int) -> Row:
        length = int(self.lengths[index])
        return Row(np.arange(length), np.arange(length) > 0)


class RaisesInAWorker(Toy):
    def __getitem__(self, index: int) -> Row:
        if get_worker_info() is not None:
            raise OSError("too many open files")
        return super().__getitem__(index)


class KillsItsWorker(Toy):
    def __getitem__(self, index: int) -> Row:
        if get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


class RaisesEverywhere(Toy):
    def __getitem__(self, index: int) -> Row:
        raise ValueError("no such row")
