"""The protocol Tracker, and a group of trackers."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Protocol

from sftctl.metrics import StepMetrics


class Tracker(Protocol):
    """Receives every step and event of a run, on rank 0.

    Events and their fields: started (run_dir, num_parameters, num_trained, num_examples,
    total_steps) · resumed (checkpoint) · changed (message) · evaluation (validation_loss,
    num_target_tokens, token_accuracy, entropy, metrics, sets, best, best_step) · sample (number,
    prompt, reply, reference) · saved
    (path, num_bytes, seconds) · save_failed (error) · ended_early (reason, best_step) · stopped
    (signal) · finished · failed (kind, message) · warning (message).
    """

    def log(self, metrics: StepMetrics) -> None:
        """Called after each step."""
        ...

    def event(self, name: str, step: int, **fields: object) -> None:
        """Called when something happened after `step` updates."""
        ...

    def close(self) -> None:
        """Called when the session has ended, with or without an error. May be called twice."""
        ...


class NullTracker:
    """Does nothing. Ranks other than 0 use this tracker."""

    def log(self, metrics: StepMetrics) -> None:
        pass

    def event(self, name: str, step: int, **fields: object) -> None:
        pass

    def close(self) -> None:
        pass


ENDS = ("finished", "stopped", "failed")
"""Events for the end of a session. In the log of a run, such an event is the last of a session."""


class TrackerGroup:
    """Calls several trackers, required trackers first.

    Errors of required trackers are raised. If an optional tracker fails, it is removed, and the
    other trackers get a `warning` event. After an event in ENDS, only optional trackers get this
    warning. Trackers are closed in reverse order, so trackers that use a network should come last.
    """

    def __init__(self, required: Sequence[Tracker], optional: Sequence[Tracker] = ()) -> None:
        self._required = list(required)
        self._optional = list(optional)
        self._step = 0
        self._has_ended = False

    def log(self, metrics: StepMetrics) -> None:
        self._step = metrics.step
        self._for_each(lambda tracker: tracker.log(metrics), self._required)

    def event(self, name: str, step: int, **fields: object) -> None:
        self._step = step
        is_after_the_end = self._has_ended and name not in ENDS
        self._has_ended = self._has_ended or name in ENDS
        required = [] if is_after_the_end else self._required
        self._for_each(lambda tracker: tracker.event(name, step, **fields), required)

    def close(self) -> None:
        with ExitStack() as stack:
            for tracker in self._required:
                stack.callback(tracker.close)
            for tracker in self._optional:
                stack.callback(self._close_optional, tracker)

    def _for_each(self, call: Callable[[Tracker], None], required: Sequence[Tracker]) -> None:
        for tracker in required:
            call(tracker)
        for tracker in list(self._optional):
            self._attempt(tracker, call)

    def _attempt(self, tracker: Tracker, call: Callable[[Tracker], None]) -> None:
        if tracker not in self._optional:  # dropped during this call
            return
        try:
            call(tracker)
        except Exception as error:  # a failing display or service must not end the training
            self._optional.remove(tracker)
            with suppress(Exception):
                tracker.close()
            name, kind = type(tracker).__name__, type(error).__name__
            message = f"{name} failed and gets no more reports: {kind}: {error}"
            self.event("warning", self._step, message=message)

    def _close_optional(self, tracker: Tracker) -> None:
        self._attempt(tracker, lambda one: one.close())
        with suppress(ValueError):  # a tracker that failed is already removed
            self._optional.remove(tracker)
