"""The command line in this process: exit code, stdout, stderr."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import typer.main

from sftctl.cli.app import app
from sftctl.cli.guide.hints import command_before, options_of

OTHER_TOOLS = ("llama-gguf-split", "docker", "tensorboard")
"""Programs whose options a hint may name."""


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


def without_phases(stderr: str) -> list[str]:
    """The lines without phases such as `loading torch`, which appear if a phase lasts a second."""
    return [line for line in stderr.splitlines() if not re.match("[a-z]+ing ", line)]


def untypeable(result: Result, arguments: list[str]) -> list[str]:
    """The options in a hint that its command does not have."""
    group: Any = typer.main.get_command(app)
    typed = next((word for word in arguments if word in group.commands), None)
    hints = [line for line in result.stderr.splitlines() if line.startswith("hint: ")]
    if typed is None or any(tool in hint for hint in hints for tool in OTHER_TOOLS):
        return []
    wrong = []
    for hint in hints:
        for found in re.finditer(r"(?<![\w-])--[a-z][a-z-]*", hint):
            command = command_before(hint, found.start()) or typed
            if found[0] not in options_of(group.commands[command]) and found[0] != "--help":
                wrong.append(f"{command} {found[0]}: {hint}")
    return wrong


@pytest.fixture
def sftctl(capfdbinary: pytest.CaptureFixture[bytes]) -> Callable[..., Result]:
    """`sftctl("train", "--epochs", "2")`."""

    def run(*arguments: object) -> Result:
        with pytest.raises(SystemExit) as exit_:
            app([str(argument) for argument in arguments], prog_name="sftctl")
        out, err = capfdbinary.readouterr()
        result = Result(int(exit_.value.code or 0), out.decode(), err.decode())
        assert untypeable(result, [str(argument) for argument in arguments]) == []
        return result

    return run
