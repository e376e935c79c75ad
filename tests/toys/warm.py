"""New processes that are forked from one that has imported torch: milliseconds, not five seconds.

`WARM` is a context of multiprocessing. Its processes take over the environment, the working
directory, the output streams and the blocked and ignored signals that the caller has when it starts
them, as spawned ones do.
`WarmCommand` is `sftctl …` in such a process. A test of what happens before torch is loaded
starts a Python of its own instead.
"""

import atexit
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.reduction import DupFd
from typing import Any

from sftctl.tracking import status

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class WarmProcess(ForkServerProcess):
    """A process of the fork server, with the environment and the streams of whoever starts it.

    `streams` are the descriptors that it has as 0, 1 and 2.
    """

    streams: dict[int, int] = {1: 1, 2: 2}

    def __getstate__(self) -> dict[str, Any]:
        streams = {stream: DupFd(given) for stream, given in self.streams.items()}
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        ignored = [number for number in SIGNALS if signal.getsignal(number) is signal.SIG_IGN]
        return self.__dict__ | {"_outside": (dict(os.environ), streams, blocked, ignored)}

    def run(self) -> None:
        """Call the target as `spawn` would."""
        environment, streams, blocked, ignored = self.__dict__.pop("_outside")
        for number in SIGNALS:
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, signal.SIG_IGN if number in ignored else default)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        os.environ.clear()
        os.environ.update(environment)
        for stream, given in streams.items():
            descriptor = given.detach()
            os.dup2(descriptor, stream)
            os.close(descriptor)
        # New objects: those of the fork server know whether its streams were files or pipes.
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
        as_on_a_quiet_machine()
        super().run()


class WarmContext(ForkServerContext):
    """Starts WarmProcesses."""

    _name = "warm"
    Process = WarmProcess


WARM = WarmContext()
# The process that forks never trains, because torch can't be forked after its threads have worked.
WARM.set_forkserver_preload(
    [
        "pytest",
        "sftctl.cli.app",
        "sftctl.cli.train_commands",
        "sftctl.train.preflight.paths",
        "sftctl.train.launch",
        "sftctl.train.run",
        "torch._dynamo",
        "torch.onnx",
        "transformers.generation.utils",
        "transformers.models.auto.modeling_auto",
        "transformers.models.auto.tokenization_auto",
        "transformers.models.qwen3.modeling_qwen3",
    ]
)


def as_on_a_quiet_machine() -> None:
    """Print no phases, which on a slow machine last long enough to become lines on stderr, and no
    warning about the machine's load."""
    status._LONG_S = math.inf
    os.getloadavg = lambda: (0.0, 0.0, 0.0)


def spawn_warm() -> None:
    """Make all processes that this one spawns warm: ranks, and processes of bench-loader."""
    multiprocessing.context._concrete_contexts["spawn"] = WARM  # type: ignore[attr-defined]


class WarmCommand:
    """`sftctl …`, with what tests use of subprocess.Popen.

    Without `stdout` and `stderr` (descriptors), `communicate` returns what the command wrote.
    `first` is called in the new process, before the command; it must be importable.
    """

    def __init__(
        self,
        *words: str,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        first: Callable[[], object] | None = None,
    ) -> None:
        self._written = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115
        out, err = (file.fileno() for file in self._written)
        self._process = WARM.Process(target=_command, args=(words, first))
        self._process.streams = {1: out if stdout is None else stdout}
        self._process.streams |= {2: err if stderr is None else stderr}
        if stdin is not None:
            self._process.streams[0] = stdin
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("sftctl", timeout or 0.0)
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[bytes, bytes]:
        self.wait(timeout)
        for file in self._written:
            file.seek(0)
        out, err = (file.read() for file in self._written)
        return out, err

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):  # the fork server has collected it already
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run_warm(*words: str, **how: Any) -> "subprocess.CompletedProcess[bytes]":
    """A WarmCommand that has ended, with what it wrote."""
    command = WarmCommand(*words, **how)
    out, err = command.communicate(900)
    return subprocess.CompletedProcess(words, command.wait(), out, err)


def _command(words: tuple[str, ...], first: Callable[[], object] | None) -> None:
    multiprocessing.set_start_method(None, force=True)  # start loader processes as a command does
    if first is not None:
        first()
    from sftctl.cli.app import app

    try:
        app(list(words), prog_name="sftctl")
    finally:
        atexit._run_exitfuncs()
