"""Hashes a store in a separate process with the lowest priority, while training runs.

A thread would slow down the training, which waits when the thread holds Python's global lock.
"""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from sftctl.data.manifest import StoreManifest
from sftctl.data.storage.hashes import first_wrong
from sftctl.processes import become_a_worker

_MODULE = "sftctl.data.storage.background_check"
_DONE, _WRONG = 0, 3  # exit codes of the process
_PATIENCE_S = 0.2
_QUICK_BYTES = 1 << 29  # hashed in about a second


class BackgroundCheck:
    """A running check. Its process ends when the process that started it ends."""

    def __init__(self, store: Path, manifest: StoreManifest) -> None:
        self._store, self._manifest = store, manifest
        self._problem: str | None = None
        self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
            [sys.executable, "-m", _MODULE, str(store.absolute())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            process_group=0,  # so that Ctrl-C in the terminal does not reach this process
        )

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def problem(self) -> str | None:
        """The problem that the check has found so far; None if there is none.

        This does not wait. But if the process died without a result, the check is done here.
        """
        if self._process is not None and not self.is_running:
            process, self._process = self._process, None
            answer, _ = process.communicate()
            if process.returncode == _WRONG and answer:
                self._problem = answer.decode("utf-8", "surrogateescape").strip()
            elif process.returncode != _DONE:
                self._problem = first_wrong(self._store, self._manifest)
        return self._problem

    def hurry(self) -> None:
        """Do the check of a small store here. Call this when training is over and needs the result.

        On a busy machine, the background process may have to wait for a long time.
        """
        if self._process is None:
            return
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_PATIENCE_S)
        num_bytes = sum(entry.num_bytes for entry in self._manifest.files.values())
        if self.is_running and num_bytes <= _QUICK_BYTES:
            self.close()
            self._problem = first_wrong(self._store, self._manifest)

    def close(self) -> None:
        """End the process if it is still running."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def main() -> None:
    """The main function of the process. Its argument is the path of the store. It prints the first
    problem."""
    become_a_worker()
    with suppress(OSError):
        os.nice(19)
    store = Path(sys.argv[1])
    problem = first_wrong(store, StoreManifest.read(store))
    if problem is not None:
        sys.stdout.buffer.write(problem.encode("utf-8", "surrogateescape"))
        sys.stdout.buffer.flush()
        sys.exit(_WRONG)


if __name__ == "__main__":
    main()
