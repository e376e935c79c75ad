"""The parts of the page that tell of the run itself."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from sftctl.config.keys import documentation
from sftctl.config.load import config_to_dict
from sftctl.config.schema import RunConfig
from sftctl.report.charts import Mark, Series, line_chart
from sftctl.report.downsample import Bucket, Numbers, downsampled
from sftctl.report.markup import Html, join, tag
from sftctl.report.record import RunRecord
from sftctl.report.wording import count, moment, number, percent, short_count, table
from sftctl.words import format_bytes, format_duration

_FAULTS = ("warning", "save_failed", "failed")
_MOST_EVENTS = 500
_MOST_SAMPLE_STEPS = 6


def cards(record: RunRecord) -> Html:
    """The figures to see first."""
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
        shown.append(("tokens a second", short_count(tokens / total_s), "over all steps"))
        waited = float(np.nansum(metrics["data_wait_s"])) / total_s
        shown.append(
            ("time in steps", format_duration(total_s), f"{percent(waited)} waiting for data")
        )
    return tag("dl", *(_card(*one) for one in shown), class_="cards")


def _card(name: str, value: str, note: str) -> Html:
    parts = (tag("dt", name), tag("dd", value), tag("dd", note, class_="note"))
    return tag("div", *parts, class_="card")


def curves(record: RunRecord) -> Html:
    """Everything that has a value at every step."""
    metrics, steps = record.metrics, record.steps
    marks = [
        Mark(event["step"], f"resumed at step {event['step']}, {moment(event.get('time'))}")
        for event in record.events
        if event["event"] == "resumed"
    ]

    def series(name: str, values: Numbers) -> Series:
        return Series(name, downsampled(steps, values))

    def chart(title: str, *named: tuple[str, Numbers], **options: Any) -> Html:
        form = options.pop("form", number)
        return line_chart(title, [series(*one) for one in named], marks, form, **options)

    points = [Bucket(step, step, loss, loss, loss) for step, loss in record.validation()]
    losses = [series("training", metrics["loss"])]
    if points:
        losses.append(Series("validation", [points], are_points=True))
    time_s = np.where(metrics["step_time_s"] > 0, metrics["step_time_s"], np.nan)
    rows = metrics["num_tokens"] + metrics["num_padding_tokens"]
    return tag(
        "div",
        line_chart("Loss", losses, marks, number, wide=True),
        chart("Learning rate", ("learning rate", metrics["learning_rate"]), from_zero=True),
        chart("Gradient norm, before clipping", ("norm", metrics["grad_norm"])),
        chart(
            "Tokens a second",
            ("all", metrics["num_tokens"] / time_s),
            ("targets", metrics["num_target_tokens"] / time_s),
            form=short_count,
            from_zero=True,
        ),
        chart(
            "Wait for data, of the step's time",
            ("wait", metrics["data_wait_s"] / time_s),
            form=percent,
            from_zero=True,
        ),
        chart(
            "Padding, of the processed tokens",
            ("padding", metrics["num_padding_tokens"] / np.where(rows > 0, rows, np.nan)),
            form=percent,
            from_zero=True,
        ),
        chart(
            "Peak memory of the largest rank, bytes",
            ("memory", metrics["peak_memory_bytes"]),
            form=short_count,
            from_zero=True,
        ),
        class_="charts",
    )


def samples(record: RunRecord) -> Html | None:
    """What the model answered while it was trained, prompt by prompt; None where nobody asked."""
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for event in record.events:
        if event["event"] == "sample":
            by_prompt.setdefault(str(event.get("prompt")), []).append(event)
    if not by_prompt:
        return None
    return join(*(_sample(prompt, told) for prompt, told in by_prompt.items()))


def _sample(prompt: str, told: list[dict[str, Any]]) -> Html:
    if len(told) > _MOST_SAMPLE_STEPS:  # the first, the last, and some evenly between
        places = np.linspace(0, len(told) - 1, _MOST_SAMPLE_STEPS).round().astype(int)
        told = [told[place] for place in places]
    replies = [
        tag("div", tag("dt", f"step {one['step']}"), tag("dd", str(one.get("reply"))))
        for one in told
    ]
    wanted = tag("div", tag("dt", "in the data"), tag("dd", str(told[-1].get("reference"))))
    return tag("article", tag("pre", prompt), tag("dl", *replies, wanted), class_="sample")


def checkpoints(record: RunRecord) -> Html:
    """Those that are there, the newest first."""
    rows = [
        (
            line.name,
            "-" if line.epoch is None else str(line.epoch),
            "-" if line.validation_loss is None else number(line.validation_loss),
            format_bytes(line.num_bytes),
            _state("whole", "good") if not line.problems else _state(line.problems[0], "bad"),
        )
        for line in reversed(record.checkpoints)
    ]
    return table(("checkpoint", "epoch", "validation loss", "size", "state"), rows)


def events(record: RunRecord) -> Html:
    """Starts, stops, resumes, faults and the rest, in the order they came."""
    told = [event for event in record.events if event["event"] != "sample"]
    shown = told[-_MOST_EVENTS:]
    rows = [
        (
            moment(event.get("time")),
            count(event["step"]),
            _state(event["event"], "bad" if event["event"] in _FAULTS else event["event"]),
            tag("span", _details(event), class_="details"),
        )
        for event in shown
    ]
    left_out = len(told) - len(shown)
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
    """Every key; what is not the default stands out."""
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
