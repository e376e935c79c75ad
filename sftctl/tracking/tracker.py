"""Who is told what a run does: the protocol, and the group of all who are."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Protocol

from sftctl.metrics import StepMetrics


class Tracker(Protocol):
    """Told of every step and event of a run, on rank 0.

    Events and their fields: started (run_dir, num_parameters, num_examples, total_steps) · resumed
    (checkpoint) · changed (message) · evaluation (validation_loss, num_target_tokens) · sample
    (number, prompt, reply, reference) · saved (path, num_bytes, seconds) · save_failed (error) ·
    stopped (signal) · finished · failed (kind, message) · warning (message).
    """

    def log(self, metrics: StepMetrics) -> None:
        """One step was done."""
        ...

    def event(self, name: str, step: int, **fields: object) -> None:
        """Something happened after `step` updates."""
        ...

    def close(self) -> None:
        """The run ends, however it ends; a second call does nothing."""
        ...


class NullTracker:
    """Ranks other than 0: nobody is told."""

    def log(self, metrics: StepMetrics) -> None:
        pass

    def event(self, name: str, step: int, **fields: object) -> None:
        pass

    def close(self) -> None:
        pass


class TrackerGroup:
    """Tells all: what a required tracker raises is raised, an optional one that fails is dropped.

    The required ones are told first. The rest hear of a dropped one, once, by the event `warning`.
    They are closed last to first, so give the console before those that talk to a network.
    """

    def __init__(self, required: Sequence[Tracker], optional: Sequence[Tracker] = ()) -> None:
        self._required = list(required)
        self._optional = list(optional)
        self._step = 0

    def log(self, metrics: StepMetrics) -> None:
        self._step = metrics.step
        self._tell(lambda tracker: tracker.log(metrics))

    def event(self, name: str, step: int, **fields: object) -> None:
        self._step = step
        self._tell(lambda tracker: tracker.event(name, step, **fields))

    def close(self) -> None:
        with ExitStack() as stack:
            for tracker in self._required:
                stack.callback(tracker.close)
            for tracker in self._optional:
                stack.callback(self._close_optional, tracker)

    def _tell(self, call: Callable[[Tracker], None]) -> None:
        for tracker in self._required:
            call(tracker)
        for tracker in list(self._optional):
            self._attempt(tracker, call)

    def _attempt(self, tracker: Tracker, call: Callable[[Tracker], None]) -> None:
        if tracker not in self._optional:  # dropped while this news went round
            return
        try:
            call(tracker)
        except Exception as error:  # whatever a display or a service raises, training goes on
            self._optional.remove(tracker)
            with suppress(Exception):
                tracker.close()
            name, kind = type(tracker).__name__, type(error).__name__
            message = f"{name} failed and is not told any more: {kind}: {error}"
            self.event("warning", self._step, message=message)

    def _close_optional(self, tracker: Tracker) -> None:
        self._attempt(tracker, lambda one: one.close())
        with suppress(ValueError):  # a failed one is gone already
            self._optional.remove(tracker)
