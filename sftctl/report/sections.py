"""The sections of the page that show the run itself; dataset.py has the one about its data."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from sftctl.config.keys import documentation
from sftctl.config.load import config_to_dict
from sftctl.config.schema import RunConfig
from sftctl.report.charts import Mark, Series, line_chart
from sftctl.report.downsample import Bucket, Numbers, downsampled
from sftctl.report.markup import Html, join, tag
from sftctl.report.plot import Format
from sftctl.report.record import RunRecord
from sftctl.report.wording import count, moment, number, percent, short_count, table
from sftctl.words import format_bytes, format_duration

_FAULTS = ("warning", "save_failed", "failed")
_MAX_EVENTS = 500
_MAX_SAMPLE_STEPS = 6


def cards(record: RunRecord) -> Html:
    """The most important numbers, at the top of the page."""
    metrics, validation = record.metrics, record.validation()
    total_s = float(np.nansum(metrics["step_time_s"]))
    tokens = float(np.nansum(metrics["num_tokens"]))
    of_total = f"of {record.total_steps:,}" if record.total_steps is not None else ""
    shown: list[tuple[str, str, str]] = [("steps", count(record.last_step), of_total)]
    if len(metrics["loss"]):
        first, last = metrics["loss"][0], metrics["loss"][-1]
        shown.append(("loss", number(last), f"from {number(first)}"))
    if validation:
        first, last = validation[0][1], validation[-1][1]
        best = min(loss for _, loss in validation)
        shown.append(
            ("validation loss", number(last), f"from {number(first)}, best {number(best)}")
        )
    shown.append(("tokens trained", short_count(tokens), "padding not counted"))
    if total_s > 0:
        shown.append(("tokens per second", short_count(tokens / total_s), "over all steps"))
        waited = float(np.nansum(metrics["data_wait_s"])) / total_s
        shown.append(
            ("time in steps", format_duration(total_s), f"{percent(waited)} waiting for data")
        )
    return tag("dl", *(_card(*one) for one in shown), class_="cards")


def _card(name: str, value: str, note: str) -> Html:
    parts = (tag("dt", name), tag("dd", value), tag("dd", note, class_="note"))
    return tag("div", *parts, class_="card")


def curves(record: RunRecord) -> Html:
    """A chart for each quantity that has a value at every step."""
    metrics, steps = record.metrics, record.steps
    marks = [
        Mark(event["step"], f"resumed at step {event['step']}, {moment(event.get('time'))}")
        for event in record.events
        if event["event"] == "resumed"
    ]

    def series(values: Mapping[str, Numbers]) -> list[Series]:
        return [Series(name, downsampled(steps, column)) for name, column in values.items()]

    def chart(title: str, form: Format, values: Mapping[str, Numbers]) -> Html:
        return line_chart(title, series(values), marks, form, from_zero=True)

    losses = series({"training": metrics["loss"]})
    if points := [Bucket(step, step, loss, loss, loss) for step, loss in record.validation()]:
        losses.append(Series("validation", [points], are_points=True))
    norms = series({"norm": metrics["grad_norm"]})
    step_s = np.where(metrics["step_time_s"] > 0, metrics["step_time_s"], np.nan)
    num_padding = metrics["num_padding_tokens"]
    processed = metrics["num_tokens"] + num_padding
    padding_share = num_padding / np.where(processed > 0, processed, np.nan)
    speeds = {
        "all": metrics["num_tokens"] / step_s,
        "targets": metrics["num_target_tokens"] / step_s,
    }
    return tag(
        "div",
        line_chart("Loss", losses, marks, number, wide=True),
        chart("Learning rate", number, {"learning rate": metrics["learning_rate"]}),
        line_chart("Gradient norm, before clipping", norms, marks, number),
        chart("Tokens per second", short_count, speeds),
        chart(
            "Wait for data, share of the step's time",
            percent,
            {"wait": metrics["data_wait_s"] / step_s},
        ),
        chart("Padding, share of the processed tokens", percent, {"padding": padding_share}),
        chart(
            "Peak memory of the largest rank",
            format_bytes,
            {"memory": metrics["peak_memory_bytes"]},
        ),
        class_="charts",
    )


def samples(record: RunRecord) -> Html | None:
    """The model's answers during training, by prompt; None if there are none."""
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for event in record.events:
        if event["event"] == "sample":
            by_prompt.setdefault(str(event.get("prompt")), []).append(event)
    if not by_prompt:
        return None
    return join(*(_sample(prompt, answers) for prompt, answers in by_prompt.items()))


def _sample(prompt: str, answers: list[dict[str, Any]]) -> Html:
    if len(answers) > _MAX_SAMPLE_STEPS:  # the first, the last, and evenly spaced ones between
        chosen = np.linspace(0, len(answers) - 1, _MAX_SAMPLE_STEPS).round().astype(int)
        answers = [answers[index] for index in chosen]
    replies = [
        tag("div", tag("dt", f"step {one['step']}"), tag("dd", str(one.get("reply"))))
        for one in answers
    ]
    wanted = tag("div", tag("dt", "in the data"), tag("dd", str(answers[-1].get("reference"))))
    return tag("article", tag("pre", prompt), tag("dl", *replies, wanted), class_="sample")


def checkpoints(record: RunRecord) -> Html:
    """The checkpoints of the run, the newest first."""
    rows = [
        (
            line.name,
            "-" if line.epoch is None else str(line.epoch),
            "-" if line.validation_loss is None else number(line.validation_loss),
            format_bytes(line.num_bytes),
            _state("complete", "good") if not line.problems else _state(line.problems[0], "bad"),
        )
        for line in reversed(record.checkpoints)
    ]
    return table(("checkpoint", "epoch", "validation loss", "size", "state"), rows)


def events(record: RunRecord) -> Html:
    """All events but the samples, in the order in which they happened."""
    events = [event for event in record.events if event["event"] != "sample"]
    shown = events[-_MAX_EVENTS:]
    rows = [
        (
            moment(event.get("time")),
            count(event["step"]),
            _state(event["event"], "bad" if event["event"] in _FAULTS else event["event"]),
            tag("span", _details(event), class_="details"),
        )
        for event in shown
    ]
    left_out = len(events) - len(shown)
    note = tag("p", f"{left_out:,} earlier ones are in events.jsonl", class_="note")
    return join(note if left_out else None, table(("time", "step", "event", "details"), rows))


def _details(event: dict[str, Any]) -> str:
    known = ("event", "step", "time")
    return ", ".join(f"{key}: {_plain(value)}" for key, value in event.items() if key not in known)


def _plain(value: object) -> str:
    if isinstance(value, float):
        return number(value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _state(word: str, kind: str) -> Html:
    return tag("span", word, class_=f"state {kind}")


def configuration(record: RunRecord) -> Html:
    """Every key and its value; values that differ from the default are highlighted."""
    return tag("div", *_config_sections(record), class_="config")


def _config_sections(record: RunRecord) -> Iterator[Html]:
    defaults = config_to_dict(RunConfig())
    for section, values in record.config.items():
        lines = [
            tag(
                "div",
                tag("dt", key, title=documentation().get(f"{section}.{key}")),
                tag("dd", _setting(value)),
                class_="changed" if defaults[section].get(key) != value else None,
            )
            for key, value in values.items()
        ]
        yield tag("section", tag("h3", section), tag("dl", *lines, class_="facts"))


def _setting(value: object) -> str:
    return ("off", "on")[value] if isinstance(value, bool) else str(value)
