"""The sentence that is printed after a signal: what happens now, and how long it takes."""

import time

from sftctl.metrics import StepMetrics
from sftctl.train.session import Session
from sftctl.words import format_bytes, format_duration

_WORTH_TELLING_S = 2.0  # a shorter wait is not announced


class Outlook:
    """Follows the loop of a run, and can tell another thread how long a stop will take, and why."""

    def __init__(self, session: Session) -> None:
        self._progress = session.state.progress
        self._size = format_bytes(session.state.checkpoint_bytes)
        self._step_time_s: float | None = None
        self._since = time.monotonic()
        self.is_training = False

    def begin_step(self) -> None:
        """A step begins, and the work between two steps is done."""
        self._since, self.is_training = time.monotonic(), True

    def end_step(self, metrics: StepMetrics | None = None) -> None:
        """A step has ended (with `metrics`), or there are no more steps (without)."""
        self._step_time_s = metrics.step_time_s if metrics is not None else None
        self.is_training = False

    def __call__(self) -> str:
        step = self._progress.step
        if not self.is_training:
            return f"step {step} is saved ({self._size})"
        return f"step {step + 1} ends{self._wait()}, then it is saved ({self._size})"

    def _wait(self) -> str:
        if self._step_time_s is None:
            return " first"
        left = self._step_time_s - (time.monotonic() - self._since)
        return f" in about {format_duration(left)}" if left > _WORTH_TELLING_S else " in a moment"
