"""Save while training continues: copy the state in memory, then write the copy in a thread.

Only one save runs at a time, in one thread on each rank. The threads have their own process group:
their collective calls must not mix with those of a training step.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import torch

from sftctl.checkpoint.directory import KeepBest, retire
from sftctl.checkpoint.layout import CheckpointManifest
from sftctl.checkpoint.save import save_checkpoint, tied_names
from sftctl.disk import DISK, Disk
from sftctl.errors import CheckpointError
from sftctl.world import World, local_part


@dataclass(frozen=True, slots=True)
class SaveOutcome:
    """How one save ended.

    `error` is the same on all ranks. Other fields are valid only on rank 0.
    """

    step: int
    path: Path | None  # None: the save failed
    num_bytes: int  # on disk
    seconds: float  # from the request to the verified checkpoint
    wait_s: float  # the part of this time during which training waited
    error: CheckpointError | None = None
    warning: str | None = None  # if an old checkpoint could not be deleted


class BackgroundSaver:
    """Saves checkpoints of `tensors` during the training, and keeps the newest and the best.

    With `in_background`, the memory for a copy of the state is allocated at once. Without it, only
    `save_now` may be called.
    """

    def __init__(
        self,
        root: Path,
        keep: int,
        tensors: dict[str, torch.Tensor],
        world: World,
        disk: Disk = DISK,
        *,
        in_background: bool = True,
        best: KeepBest = KeepBest(),
    ) -> None:
        self.protected_step: int | None = None
        """The checkpoint of this step is not deleted. None: no step is protected."""
        self._root, self._tensors, self._disk = root, tensors, disk
        self._keep, self._best = keep, best
        self._world = world.for_saving()
        tied = tied_names(tensors)
        self._parts = {
            name: _buffer_for(local_part(tensor))
            for name, tensor in tensors.items()
            if in_background and name not in tied
        }
        self._running: Future[SaveOutcome] | None = None

    def start(
        self,
        manifest: CheckpointManifest,
        before: Callable[[], object] = lambda: None,
        started: float | None = None,
    ) -> None:
        """Copy the state, and write the copy in the background. The previous save must have ended.

        `started` is the time (perf_counter) at which training began to wait. The default is the
        time of this call.
        """
        assert self._running is None
        started = time.perf_counter() if started is None else started
        _copy(self._tensors, self._parts)
        wait_s = time.perf_counter() - started
        running: Future[SaveOutcome] = Future()

        def work() -> None:
            try:
                running.set_result(self._save(manifest, self._parts, before, started, wait_s))
            except BaseException as error:  # a lost rank, or a bug: `wait` raises it again
                running.set_exception(error)

        self._running = running
        # A daemon thread, because a save can wait for a dead rank, and this rank must then exit.
        threading.Thread(target=work, name="sftctl-save", daemon=True).start()

    def save_now(
        self, manifest: CheckpointManifest, before: Callable[[], object] = lambda: None
    ) -> SaveOutcome:
        """Write the state without copying it. Returns when the checkpoint is complete."""
        assert self._running is None
        return self._save(manifest, None, before, time.perf_counter(), None)

    def ended(self) -> SaveOutcome | None:
        """The outcome of a save that has ended and was not reported yet, else None. Never waits."""
        return self.wait() if self._running is not None and self._running.done() else None

    def wait(self) -> SaveOutcome | None:
        """Wait for the running save and return its outcome; None if no save is running."""
        running, self._running = self._running, None
        return running.result() if running is not None else None

    def _save(
        self,
        manifest: CheckpointManifest,
        parts: dict[str, torch.Tensor] | None,
        before: Callable[[], object],
        started: float,
        wait_s: float | None,
    ) -> SaveOutcome:
        path, num_bytes, failure, warning = None, 0, None, None
        try:
            path = save_checkpoint(
                self._root, self._tensors, manifest, self._world, self._disk,
                parts=parts, before=before,
            )  # fmt: skip
            if self._world.is_main:
                num_bytes = _size(path)
                warning = self.retire()
        except CheckpointError as error:
            failure = error
        seconds = time.perf_counter() - started
        waited = seconds if wait_s is None else wait_s
        return SaveOutcome(manifest.step, path, num_bytes, seconds, waited, failure, warning)

    def retire(self) -> str | None:
        """Delete old checkpoints. Returns a warning if one can't be deleted.

        Call it on the main rank, and only while no save is running.
        """
        step = self.protected_step
        try:
            retire(self._root, self._keep, self._disk, best=self._best, protected_step=step)
        except CheckpointError as error:  # one checkpoint too many must not end the run
            return error.message
        return None


def _size(folder: Path) -> int:
    """The bytes of a checkpoint's files; 0 if it was moved or deleted in the meantime."""
    try:
        return sum(file.stat().st_size for file in folder.iterdir())
    except FileNotFoundError:
        return 0


def _buffer_for(part: torch.Tensor) -> torch.Tensor:
    """A buffer of which every memory page is written now. Else the first save would wait for page
    faults.
    """
    on_gpu = part.device.type == "cuda"
    buffer = torch.empty(part.shape, dtype=part.dtype, pin_memory=on_gpu)
    return buffer.fill_(0)


@torch.no_grad()
def _copy(tensors: dict[str, torch.Tensor], parts: dict[str, torch.Tensor]) -> None:
    for name, buffer in parts.items():
        buffer.copy_(local_part(tensors[name]), non_blocking=True)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
