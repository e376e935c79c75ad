"""Small stores for the loader, some of which make it fail."""

import ctypes
import os
import resource
import signal
import time
from dataclasses import dataclass
from multiprocessing import current_process
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import get_worker_info

from sftctl.data.step_shape import StepShape

SHAPE = StepShape(
    seed=0, global_batch_size=4, micro_batch_tokens=64, cut_for_ranks=1, rank=0, world_size=1
)


@dataclass
class Row:
    input_ids: npt.NDArray[np.int64]
    loss_mask: npt.NDArray[np.bool_]
    loss_weights: None = None


class Toy:
    """Ten short examples, never read from a disk."""

    lengths: npt.NDArray[np.integer] = np.arange(3, 13, dtype=np.int32)
    target_lengths: npt.NDArray[np.integer] = lengths - 1
    target_weights: npt.NDArray[np.floating] | None = None

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
    """With two workers one of them kills the process that loads, as a bus error does."""

    def __getitem__(self, index: int) -> Row:
        worker = get_worker_info()
        if worker is not None and worker.num_workers == 2:
            os.kill(os.getppid(), signal.SIGBUS)
        return super().__getitem__(index)


class KillsTheRankAndLives(Toy):
    """A loader process kills its rank, does not die with it, and keeps the rank's pipe open."""

    def __init__(self, pid_file: Path) -> None:
        self.pid_file = pid_file

    def __getitem__(self, index: int) -> Row:
        if get_worker_info() is not None:
            ctypes.CDLL(None).prctl(1, 0)  # PR_SET_PDEATHSIG: no signal when the parent dies
            self.pid_file.write_text(str(os.getpid()))
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(100)
        return super().__getitem__(index)


class WantsForkedWorkers(Toy):
    def __getitem__(self, index: int) -> Row:
        if get_worker_info() is not None and type(current_process()).__name__ != "ForkProcess":
            raise RuntimeError("this loader process was not forked")
        return super().__getitem__(index)


class LeavesFewFiles(Toy):
    """The process that receives it may open few more files."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _with_few_files, ()


def _with_few_files() -> Toy:
    most = len(os.listdir("/proc/self/fd")) + 8
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return Toy()


class RaisesOnce(Toy):
    """The first process that reads a row fails; the file says that this has happened."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __getitem__(self, index: int) -> Row:
        try:
            self.file.touch(exist_ok=False)
        except FileExistsError:
            return super().__getitem__(index)
        raise ValueError("the first row is bad")


class EndsItsProcess(Toy):
    def __getitem__(self, index: int) -> Row:
        os._exit(3)


class NeverAnswers(Toy):
    def __getitem__(self, index: int) -> Row:
        time.sleep(100)
        return super().__getitem__(index)


class RaisesEverywhere(Toy):
    def __getitem__(self, index: int) -> Row:
        raise ValueError("no such row")
