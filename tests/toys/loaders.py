import os
import resource
import signal
from dataclasses import dataclass
from multiprocessing import current_process

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


class BlowsUpWithTwoWorkers(Toy):
    """Kills the whole process that loads, as a bus error does, but only beside two workers."""

    def __getitem__(self, index: int) -> Row:
        worker = get_worker_info()
        if worker is not None and worker.num_workers == 2:
            os.kill(os.getppid(), signal.SIGBUS)
        return super().__getitem__(index)


class WantsForkedWorkers(Toy):
    def __getitem__(self, index: int) -> Row:
        if get_worker_info() is not None and type(current_process()).__name__ != "ForkProcess":
            raise RuntimeError("this loader process has loaded everything anew")
        return super().__getitem__(index)


class LeavesFewFiles(Toy):
    """Where it arrives, few more files may be opened."""

    def __reduce__(self):
        return _with_few_files, ()


def _with_few_files() -> Toy:
    most = len(os.listdir("/proc/self/fd")) + 8
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return Toy()


class RaisesEverywhere(Toy):
    def __getitem__(self, index: int) -> Row:
        raise ValueError("no such row")
