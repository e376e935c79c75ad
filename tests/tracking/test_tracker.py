"""A group of trackers: which failures end a run and which drop a tracker."""

import pytest

from sftctl.tracking.tracker import NullTracker, Tracker, TrackerGroup
from tests.toys.metrics import Broken, Memory, step_metrics

MESSAGE = "Broken failed and gets no more reports: RuntimeError: no route to host"


def test_every_tracker_gets_everything() -> None:
    required, optional = Memory(), Memory()
    group = TrackerGroup([required], [optional])
    group.log(step_metrics(1))
    group.event("saved", 1, path="step-00000001")
    group.close()
    for tracker in (required, optional):
        assert tracker.steps == [1]
        assert tracker.events == [("saved", 1, {"path": "step-00000001"})]
        assert tracker.closed == 1


def test_an_optional_tracker_that_fails_is_dropped_and_the_others_get_one_warning() -> None:
    required, before, broken, after = Memory(), Memory(), Broken("log"), Memory()
    group = TrackerGroup([required], [before, broken, after])
    for step in (1, 2, 3):
        group.log(step_metrics(step))
    group.close()
    assert broken.steps == [1]
    assert broken.events == []
    assert broken.closed == 1
    for tracker in (required, before, after):
        assert tracker.steps == [1, 2, 3]
        assert tracker.events == [("warning", 1, {"message": MESSAGE})]


def test_trackers_that_fail_in_every_call_do_not_disturb_the_required_one() -> None:
    required = Memory()
    broken = [Broken("log", "event", "close") for _ in range(3)]
    group = TrackerGroup([required], broken)
    group.event("started", 0)
    group.log(step_metrics(1))
    group.close()
    assert required.steps == [1]
    assert [name for name, _, _ in required.events] == ["started"] + ["warning"] * 3
    assert required.closed == 1


def test_a_required_tracker_that_fails_stops_the_run_and_all_are_closed() -> None:
    required, optional = Broken("log", "close", error=OSError), Memory()
    group = TrackerGroup([required], [optional])
    with pytest.raises(OSError, match="no route to host"):
        group.log(step_metrics(1))
    with pytest.raises(OSError, match="no route to host"):
        group.close()
    assert optional.closed == 1


def test_a_failure_while_closing_is_a_warning_for_the_trackers_still_open() -> None:
    required, console, service = Memory(), Memory(), Broken("close")
    group = TrackerGroup([required], [console, service])
    group.log(step_metrics(7))
    group.close()
    assert console.events == required.events == [("warning", 7, {"message": MESSAGE})]
    assert console.closed == required.closed == 1


@pytest.mark.parametrize("name", ["finished", "stopped", "failed"])
@pytest.mark.parametrize("call", ["event", "close"])
def test_no_warning_follows_the_end_in_a_required_tracker(name: str, call: str) -> None:
    required, console, service = Memory(), Memory(), Broken(call)
    group = TrackerGroup([required], [console, service])
    group.event(name, 7)
    group.close()
    assert required.events == [(name, 7, {})]
    assert console.events == [(name, 7, {}), ("warning", 7, {"message": MESSAGE})]


def test_a_failure_after_the_end_is_an_end_too() -> None:
    required = Memory()
    group = TrackerGroup([required])
    group.event("finished", 7)
    group.event("failed", 7)
    assert [name for name, _, _ in required.events] == ["finished", "failed"]


def test_a_closed_tracker_gets_nothing() -> None:
    service, closed_before = Broken("close"), Memory()
    TrackerGroup([Memory()], [service, closed_before]).close()
    assert closed_before.closed == 1
    assert closed_before.events == []


def test_the_null_tracker_is_a_tracker() -> None:
    tracker: Tracker = NullTracker()
    tracker.log(step_metrics(1))
    tracker.event("saved", 1, path="x")
    tracker.close()
