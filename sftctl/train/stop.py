"""StopRequest: react to signals, and let all ranks stop after the same step.

This module does not load torch, so that signals are handled before torch is imported.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from sftctl import environment
from sftctl.errors import Stopped
from sftctl.tracking.status import write_line

if TYPE_CHECKING:
    from sftctl.world import World

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
_LEAVE_AFTER_S = 1.0  # a second Ctrl-C ends the process only after this time
_TOO_SOON = "too soon to count: press Ctrl-C again in a second to leave without saving"
_POLL_S = 0.1  # how often rank 0 looks for the launcher's stop file
_GRACE_S = 0.7  # time for the main thread to stop, if nothing has to be saved
_END = b"\0"  # ends the thread that reads the pipe; no signal has the number 0


class Interrupted(BaseException):
    """A signal has ended work whose result is not kept. `except Exception` does not catch this."""


class StopRequest:
    """Listens for signals inside its context, and prints at once what happens next.

    Python runs a signal handler only between two bytecodes, so not during a long call of torch.
    Therefore a thread reads the signal numbers from a pipe and prints the answer. After the answer,
    only Ctrl-C has an effect: it ends the process without saving.

    A signal that was ignored when the process started (`nohup`, a background job) stays ignored.
    SIGUSR1 is always handled: job scripts ignore it to protect torchrun, and ranks inherit this.

    A terminal sends Ctrl-C to every process. Under our launcher only the parent process handles
    Ctrl-C. The parent writes the signal's name to a file (`relayed_into`), and rank 0 reads this
    file (`stop_file`).

    With `may_leave`, the process is ended after a signal if there is nothing to save and its main
    thread does not stop by itself.
    """

    def __init__(self, stop_file: Path | None = None, *, may_leave: bool = False) -> None:
        self.show: Callable[[str], None] = write_line
        """Prints the answer to a signal."""
        self.outlook: Callable[[], str] | None = None
        """Returns what happens next, for the answer; None: no step is trained, nothing to save."""
        self._stop_file, self._may_leave = stop_file, may_leave
        self._parent = os.getppid()
        self._relay: Path | None = None
        self._signal_name: str | None = None
        self._interrupts = False
        self._agreed: str | None = None
        self._answered_at: float | None = None
        self._is_early_told = False
        self._previous: dict[int, Any] = {}
        self._pipe: tuple[int, int] | None = None
        self._thread: threading.Thread | None = None
        self._before = -1

    def __enter__(self) -> "StopRequest":
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        self._before = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        for number in SIGNALS:
            is_ignored = signal.getsignal(number) == signal.SIG_IGN
            is_for_the_parent = self._stop_file is not None and number == signal.SIGINT
            if number == signal.SIGUSR1 or not (is_ignored or is_for_the_parent):
                self._previous[number] = signal.signal(number, self._on_signal)
        self._thread = threading.Thread(target=self._answer_signals, daemon=True)
        self._thread.start()
        if self._stop_file is not None and environment.rank() == 0:
            threading.Thread(target=self._answer_stop_file, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
        self._end_thread()

    def outlive(self) -> None:
        """Ignore repeated signals from now on. Call this just before the process ends.

        Otherwise they could kill it: Python restores the default handlers early in its shutdown.
        """
        if self._signal_name is not None:
            for number in self._previous:
                signal.signal(number, signal.SIG_IGN)
            self._previous.clear()

    def _end_thread(self) -> None:
        if self._pipe is None or self._thread is None:
            return
        signal.set_wakeup_fd(self._before)
        os.write(self._pipe[1], _END)
        self._thread.join()
        for end in self._pipe:
            os.close(end)
        self._pipe = self._thread = None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signal_name = self._signal_name or signal.Signals(number).name
        if self._interrupts:
            self._interrupts = False
            raise Interrupted

    @contextmanager
    def interrupting(self, world: "World") -> Iterator[None]:
        """In this context, a signal raises Interrupted at any line of the main thread.

        Use it for work of a single rank whose result is not kept. With several ranks it has no
        effect: they must agree on a stop (`requested`).
        """
        self._interrupts = world.world_size == 1
        try:
            if self._interrupts and self._signal_name is not None:
                raise Interrupted
            yield
        finally:
            self._interrupts = False

    def _answer_signals(self) -> None:
        assert self._pipe is not None
        while _END not in (numbers := os.read(self._pipe[0], 64)):
            for number in numbers:
                if number in self._previous:
                    self._answer(number)

    def _answer(self, number: int) -> None:
        """Answer the first signal. For a later Ctrl-C, call `_answer_again`."""
        self._signal_name = self._signal_name or signal.Signals(number).name
        if self._answered_at is None:
            self._tell_ranks()
            if self._answers_itself():
                self._say()
            self._answered_at = time.monotonic()
            if self._may_leave and environment.world_size() == 1:
                threading.Thread(target=self._leave_soon, daemon=True).start()
        elif number == signal.SIGINT:
            self._answer_again(number, time.monotonic() - self._answered_at)

    def _answers_itself(self) -> bool:
        """Whether this thread prints the answer. The parent leaves it to rank 0, and rank 0 to the
        thread of the stop file, unless the parent is dead. So the SIGTERM of torch's agent gets no
        answer: then another rank has died, and nothing is saved.
        """
        if self._stop_file is not None:
            return _soon(lambda: os.getppid() != self._parent)
        return self._relay is None or not _soon(_shown(self._relay).exists)

    def _answer_again(self, number: int, seconds: float) -> None:
        """React to a Ctrl-C `seconds` after the first answer: end the process, or print that the
        Ctrl-C came too soon. If there is nothing to save, the process ends soon anyway.
        """
        if seconds > _LEAVE_AFTER_S:
            for rank in multiprocessing.active_children():
                rank.kill()
            write_line("exited at a second SIGINT; nothing more is saved")
            os._exit(128 + number)
        if not self._is_early_told and not (self.outlook is None and self._relay is None):
            self._is_early_told = True
            with suppress(Exception):  # the display may fail
                self.show(_TOO_SOON)

    def _say(self) -> None:
        """Print what happens next. Of the parent and rank 0, only the first prints: it leaves a
        file for the other.
        """
        if environment.rank() != 0:
            return
        outlook = self.outlook() if self.outlook is not None else "nothing is trained yet"
        again = " Ctrl-C again leaves without saving." if self.outlook is not None else ""
        with suppress(Exception):  # if the display fails, the signal still counts
            self.show(f"stopping: {outlook}.{again}")
        if (file := self._relay or self._stop_file) is not None:
            with suppress(OSError):
                _shown(file).touch()

    def _answer_stop_file(self) -> None:
        """On rank 0, print the answer to a signal of the launcher."""
        assert self._stop_file is not None
        while self._thread is not None:
            if _read(self._stop_file) is not None:
                if not _shown(self._stop_file).exists():
                    self._say()
                return
            time.sleep(_POLL_S)

    def _leave_soon(self) -> None:
        """After `_GRACE_S` seconds, end the process if it has not stopped, and does not train."""
        time.sleep(_GRACE_S)
        if self.outlook is None and self._relay is None and self._thread is not None:
            stopped = self._nothing_to_save()
            write_line(f"stopped: {stopped.message}")
            write_line(f"hint: {stopped.hint}")
            for child in multiprocessing.active_children():
                child.kill()
            os._exit(Stopped.exit_code)

    @contextmanager
    def relayed_into(self, stop_file: Path) -> Iterator[None]:
        """While the context is open, forward signals to the ranks through `stop_file`."""
        self._relay = stop_file
        self._tell_ranks()  # a signal may have come before the context
        try:
            yield
        finally:
            self._relay = None

    def _tell_ranks(self) -> None:
        if self._relay is not None and self._signal_name is not None:
            partial = self._relay.with_suffix(f".{threading.get_ident()}")
            partial.write_text(self._signal_name)
            partial.rename(self._relay)

    @property
    def heard(self) -> str | None:
        """The name of the signal that this process has received, or None.

        Other ranks may have received none.
        """
        if self._signal_name is None and self._stop_file is not None:
            self._signal_name = _read(self._stop_file)
        return self._signal_name

    def check(self) -> None:
        """Raise Stopped if a signal has come. Call it only while there is nothing to save."""
        if self.heard is not None:
            raise self._nothing_to_save()

    def _nothing_to_save(self) -> Stopped:
        return Stopped(
            f"by {self._signal_name} before training began: nothing to save, nothing lost",
            hint="run the same command again",
        )

    def requested(self, world: "World") -> str | None:
        """The signal's name if any rank has received a signal, else None.

        All ranks must call this together, and all get the same answer. After they agree to stop,
        the answer does not change.
        """
        if self._agreed is None:
            heard = self.heard if world.is_main else self._signal_name
            number = world.max(int(signal.Signals[heard]) if heard else 0)
            self._agreed = signal.Signals(number).name if number else None
        return self._agreed

    @property
    def agreed(self) -> str | None:
        """The signal for which all ranks have agreed to stop, or None."""
        return self._agreed


def _shown(stop_file: Path) -> Path:
    """The file that exists if the answer to a signal has been printed."""
    return stop_file.with_suffix(".shown")


def _soon(condition: Callable[[], bool]) -> bool:
    """Whether a condition becomes true within a quarter of a second."""
    for _ in range(5):
        if condition():
            return True
        time.sleep(_POLL_S / 2)
    return condition()


def _read(path: Path) -> str | None:
    try:
        return path.read_text() or None
    except FileNotFoundError:
        return None
