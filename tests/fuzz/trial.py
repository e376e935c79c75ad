"""One command on one damaged file, in a forked process with a bound on time and memory."""

import io
import json
import os
import resource
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CPU_SECONDS = 10
MEMORY_BYTES = 512 << 20
_OUT, _ERR = Path("stdout"), Path("stderr")


@dataclass(frozen=True)
class Trial:
    """How a command ended."""

    exit_code: int  # negative: the signal that ended it
    memory_bytes: int
    stdout: bytes
    stderr: bytes

    def fault(self, allowed: Sequence[int]) -> str | None:
        """The broken promise; None if all were kept."""
        if b"Traceback" in self.stderr:
            return "traceback"
        if self.exit_code not in allowed:
            return f"exit code {self.exit_code}"
        if self.memory_bytes > MEMORY_BYTES:
            return f"{self.memory_bytes >> 20} MiB"
        if self.exit_code and not self.stderr.startswith(b"error: "):
            return "no error line"
        if any(byte in self.stdout + self.stderr for byte in b"\x1b\x07\x08\r"):
            return "a control character"
        return self._fault_of_json()

    def _fault_of_json(self) -> str | None:
        if self.stdout.startswith(b"{"):
            try:
                json.loads(self.stdout)
            except ValueError:
                return "not JSON"
        return None


def run(arguments: Sequence[str]) -> Trial:
    """Run the command line in a child; it may use 10 seconds of the processor."""
    child = os.fork()
    if not child:
        _become(arguments)
    _, status, usage = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return Trial(code, 1024 * usage.ru_maxrss, _OUT.read_bytes(), _ERR.read_bytes())


def _become(arguments: Sequence[str]) -> None:
    code = 70
    try:
        for name, stream in ((_OUT, 1), (_ERR, 2)):
            descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, stream)
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w"), encoding="utf-8")
        sys.stderr = io.TextIOWrapper(
            io.FileIO(2, "w"), encoding="utf-8", errors="backslashreplace"
        )
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        from sftctl.cli.app import app

        app(list(arguments), prog_name="sftctl")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 70
    except BaseException:
        traceback.print_exc(file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
