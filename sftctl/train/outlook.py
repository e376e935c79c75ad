"""The line that answers a signal: what the run does before it stops, and how long this takes."""

import time

from sftctl.metrics import StepMetrics
from sftctl.train.session import Session
from sftctl.words import format_bytes, format_duration

_WORTH_TELLING_S = 2.0  # for a shorter wait, no time is shown


class Outlook:
    """Records what the training loop is doing.

    From this, another thread says when the run stops.
    """

    def __init__(self, session: Session) -> None:
        self._progress, self._stop = session.state.progress, session.stop
        self._size = format_bytes(session.state.checkpoint_bytes)
        self._step_time_s: float | None = None
        self._since = time.monotonic()
        self.is_training = False

    def begin_step(self) -> None:
        """Call this before a step. After a signal, no step begins."""
        self._since, self.is_training = time.monotonic(), self._stop.heard is None

    def end_step(self, metrics: StepMetrics | None = None) -> None:
        """Call this when a step has ended, or without `metrics` when no step is left."""
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
