"""The fixture that runs a command in this process."""

from tests.toys.commands import sftctl as sftctl
