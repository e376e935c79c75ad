"""The sections of the page that show answers of the model during training."""

from typing import Any

import numpy as np

from sftctl.report.markup import Html, join, tag
from sftctl.report.record import RunRecord
from sftctl.report.wording import number
from sftctl.runs.answers import read_answers

_MAX_STEPS = 6
_MAX_ANSWERED = 8  # at most so many rows of each set are shown


def samples(record: RunRecord) -> Html | None:
    """The samples during training, grouped by prompt. None if there are no samples."""
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for event in record.events:
        if event["event"] == "sample":
            by_prompt.setdefault(str(event.get("prompt")), []).append(event)
    if not by_prompt:
        return None
    return join(*(_sample(prompt, answers) for prompt, answers in by_prompt.items()))


def _sample(prompt: str, answers: list[dict[str, Any]]) -> Html:
    places = _some([*range(len(answers))])
    replies = [
        tag(
            "div", tag("dt", _answered_at(one)), tag("dd", str(one.get("reply", one.get("answer"))))
        )
        for one in (answers[place] for place in places)
    ]
    wanted = tag("div", tag("dt", "in the data"), tag("dd", str(answers[-1].get("reference"))))
    return tag("article", tag("pre", prompt), tag("dl", *replies, wanted), class_="sample")


def _answered_at(line: dict[str, Any]) -> str:
    """`step 20`, followed by the number of each metric for this answer."""
    own = ("event", "time", "set", "step", "number", "messages", "prompt", "reference", "reply")
    numbers = {k: v for k, v in line.items() if k not in own and isinstance(v, (int, float))}
    return f"step {line['step']}" + "".join(f", {k} {number(v)}" for k, v in numbers.items())


def judged(record: RunRecord) -> Html | None:
    """The answers for metrics with their numbers, grouped by row. None if there are no metrics."""
    steps = [one["step"] for one in record.evaluations() if one.get("metrics")]
    by_row: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for line in read_answers(record.path, _some(steps)):
        row = line.get("number")
        if isinstance(line.get("step"), int) and isinstance(row, int):  # the file may be damaged
            by_row.setdefault((str(line.get("set")), row), []).append(line)
    shown = [
        _sample(_prompt(lines[-1], several=len({name for name, _ in by_row}) > 1), lines)
        for (_, row), lines in by_row.items()
        if row < _MAX_ANSWERED
    ]
    what = f"the first {_MAX_ANSWERED} rows of each set; the folder answers/ has all rows"
    note = tag("p", what, class_="note")
    return join(note if len(shown) < len(by_row) else None, *shown) if shown else None


def _prompt(line: dict[str, Any], *, several: bool) -> str:
    """The messages of a prompt as text. `several`: there are several sets, so the name of the set
    comes first."""
    head = [f"{line.get('set')} {line.get('number')}"] if several else []
    messages = [one for one in line.get("messages") or [] if isinstance(one, dict)]
    texts = [
        f"{one.get('role')}: {one.get('content') or one.get('tool_calls')}" for one in messages
    ]
    return "\n".join([*head, *texts])


def _some(steps: list[int]) -> list[int]:
    """At most six of `steps`, evenly spaced, with the first and the last step."""
    if len(steps) <= _MAX_STEPS:
        return steps
    chosen = np.linspace(0, len(steps) - 1, _MAX_STEPS).round().astype(int)
    return [steps[index] for index in chosen]
