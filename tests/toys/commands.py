"""The command line in this process: exit code, stdout, stderr."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from sftctl.cli.app import app


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The one `error:` line."""
        (line,) = [line for line in self.stderr.splitlines() if line.startswith("error: ")]
        return line


@pytest.fixture
def sftctl(capfdbinary: pytest.CaptureFixture[bytes]) -> Callable[..., Result]:
    """`sftctl("train", "--epochs", "2")`."""

    def run(*arguments: object) -> Result:
        with pytest.raises(SystemExit) as exit_:
            app([str(argument) for argument in arguments], prog_name="sftctl")
        out, err = capfdbinary.readouterr()
        return Result(int(exit_.value.code or 0), out.decode(), err.decode())

    return run
