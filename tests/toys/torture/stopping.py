"""`python -m tests.toys.torture.stopping train …`: sftctl pauses (SIGSTOP) after each `saved`."""

import os
import signal

from sftctl.cli.app import app
from sftctl.runs.log import RunLog

write_event = RunLog.event


def write_event_and_stop(log: RunLog, name: str, step: int, **fields: object) -> None:
    write_event(log, name, step, **fields)
    if name == "saved":
        os.kill(os.getpid(), signal.SIGSTOP)


if __name__ == "__main__":
    RunLog.event = write_event_and_stop  # type: ignore[assignment, method-assign]
    app()
