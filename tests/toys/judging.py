"""Metrics for runs of tests, named in `evaluation.metrics` as tests.toys.judging:NAME."""

from typing import Any

Messages = list[dict[str, Any]]


def length_ratio(messages: Messages, reference: str, answer: str) -> float:
    """The length of the answer divided by that of the reference. The prompt must be the user's."""
    assert messages[-1]["role"] == "user"
    return len(answer) / max(1, len(reference))


def fails_later(messages: Messages, reference: str, answer: str) -> float:
    """Judges one row, and fails at the next."""
    messages.clear()  # it may do what it likes with its own list
    fails_later.calls += 1  # type: ignore[attr-defined]
    if fails_later.calls % 2 == 0:  # type: ignore[attr-defined]
        raise SystemExit("no\nmore")
    return 1.0


fails_later.calls = 0  # type: ignore[attr-defined]


def not_finite(messages: Messages, reference: str, answer: str) -> float:
    """Returns a number that is not finite."""
    return float("nan")


NOT_A_FUNCTION = 3
