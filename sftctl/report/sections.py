"""The sections of the page about the run. dataset.py has the section about the data."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from sftctl.config.keys import default_of, documentation, keys
from sftctl.report.charts import Mark, Series, line_chart
from sftctl.report.downsample import Bucket, Numbers, downsampled, smoothed
from sftctl.report.markup import Html, join, tag
from sftctl.report.plot import Format
from sftctl.report.record import VALIDATION_LOSS, RunRecord
from sftctl.report.wording import count, facts, moment, number, percent, short_count, size, table
from sftctl.tracking.lines import event_line
from sftctl.words import counted, format_bytes, format_duration, in_shell

_FAULTS = ("warning", "save_failed", "failed")
_MAX_EVENTS = 500
_MAX_CURVES = 8  # there are so many colours
_TILE_STEPS = 20
_RESOLVED = (
    *("optim.learning_rate", "train.dtype", "train.micro_batch_tokens"),
    *("data.max_seq_len", "data.date", "train.final"),
)


_MEASURED = {
    "loss": "Loss",
    "perplexity": "Perplexity",
    "token_accuracy": "Token accuracy",
    "entropy": "Entropy",
}


def cards(record: RunRecord) -> Html:
    """The most important numbers, at the top of the page."""
    metrics = record.metrics
    total_s = float(np.nansum(metrics["step_time_s"]))
    tokens = float(np.nansum(metrics["num_tokens"]))
    of_total = f"of {record.total_steps:,}" if record.total_steps is not None else ""
    shown: list[tuple[str, str, str]] = [("steps", count(record.last_step), of_total)]
    if len(metrics["loss"]):
        recent = metrics["loss"][-_TILE_STEPS:]
        what = f"mean of {counted(len(recent), 'step')}, from {number(metrics['loss'][0])}"
        shown.append(("loss", number(float(np.nanmean(recent))), what))
    shown += _validation_cards(record)
    shown.append(("tokens trained", short_count(tokens), "padding not counted"))
    if total_s > 0:
        shown.append(("tokens per second", short_count(tokens / total_s), "over all steps"))
        waited = float(np.nansum(metrics["data_wait_s"])) / total_s
        shown.append(
            ("time in steps", format_duration(total_s), f"{percent(waited)} waiting for data")
        )
    return tag("dl", *(_card(*one) for one in shown), class_="cards")


def _validation_cards(record: RunRecord) -> Iterator[tuple[str, str, str]]:
    """The validation loss, the goal if it is not the loss, and the step of the final model."""
    validation = record.validation()
    if not validation:
        return
    first, last = validation[0][1], validation[-1][1]
    goal, best, step = record.chosen_by
    chosen = "" if best is None or step is None else f"best {number(best)} at step {step:,}"
    by_loss = goal == VALIDATION_LOSS
    note = f"from {number(first)}" + (f", {chosen}" if chosen and by_loss else "")
    yield VALIDATION_LOSS, number(last), note
    if chosen and not by_loss and best is not None and step is not None:
        yield goal, number(best), f"the best, at step {step:,}"
    if record.final_step is not None:
        why = f"the best {goal}" if record.final_step == step else "the last step"
        yield "final model", f"{record.final_step:,}", f"of this step: {why}"


def _card(name: str, value: str, note: str) -> Html:
    parts = (tag("dt", name), tag("dd", value), tag("dd", note, class_="note"))
    return tag("div", *parts, class_="card")


def _marks(record: RunRecord) -> list[Mark]:
    """Where the run was resumed."""
    return [
        Mark(event["step"], f"resumed at step {event['step']}, {moment(event.get('time'))}")
        for event in record.events
        if event["event"] == "resumed"
    ]


def losses(record: RunRecord) -> Html:
    """The loss, smoothed over its raw values, with the validation; learning rate and norm."""
    metrics, steps, marks = record.metrics, record.steps, _marks(record)
    smooth = smoothed(metrics["loss"])
    curves = [Series("training, smoothed", downsampled(steps, smooth))]
    if points := [Bucket(step, step, loss, loss, loss) for step, loss in record.validation()]:
        curves.append(Series("validation", [points], are_points=True))
    curves.append(Series("training", downsampled(steps, metrics["loss"]), is_pale=True))
    norms = [Series("norm", downsampled(steps, metrics["grad_norm"]))]
    rates = [Series("learning rate", downsampled(steps, metrics["learning_rate"]))]
    return tag(
        "div",
        line_chart("Loss", curves, marks, number, wide=True, has_switch=True),
        *_source_charts(record, marks),
        *(
            _points(f"{title} of each validation set", values, marks)
            for key, title in _MEASURED.items()
            if (values := record.of_sets(key))
        ),
        *(_points(name, values, marks) for name, values in record.judged().items()),
        line_chart("Learning rate", rates, marks, number, from_zero=True),
        line_chart("Gradient norm, before clipping", norms, marks, number),
        class_="charts",
    )


def _source_charts(record: RunRecord, marks: list[Mark]) -> Iterator[Html]:
    for key in ("loss", "token_accuracy"):
        values = record.of_sources(key).items()
        curves = [Series(name, downsampled(record.steps, value)) for name, value in values]
        if curves:
            yield line_chart(
                f"{_MEASURED[key]} of each source", curves[:_MAX_CURVES], marks, number
            )


def _points(title: str, values: Mapping[str, list[tuple[int, float]]], marks: list[Mark]) -> Html:
    """A chart of values of evaluations, with one curve for each validation set."""
    series = [
        Series(name, [[Bucket(step, step, value, value, value) for step, value in points]],
               are_points=True)
        for name, points in values.items()
    ]  # fmt: skip
    return line_chart(title, series[:_MAX_CURVES], marks, number)


def machine(record: RunRecord) -> Html:
    """Speed, waiting time, padding, memory and versions, in a collapsed section."""
    metrics, steps, marks = record.metrics, record.steps, _marks(record)

    def chart(title: str, form: Format, values: Mapping[str, Numbers]) -> Html:
        series = [Series(name, downsampled(steps, column)) for name, column in values.items()]
        return line_chart(title, series, marks, form, from_zero=True)

    step_s = np.where(metrics["step_time_s"] > 0, metrics["step_time_s"], np.nan)
    num_padding = metrics["num_padding_tokens"]
    processed = metrics["num_tokens"] + num_padding
    padding_share = num_padding / np.where(processed > 0, processed, np.nan)
    speeds = {
        "all": metrics["num_tokens"] / step_s,
        "targets": metrics["num_target_tokens"] / step_s,
    }
    charts = tag(
        "div",
        chart("Tokens per second", short_count, speeds),
        chart(
            "Wait for data, share of the step time",
            percent,
            {"wait": metrics["data_wait_s"] / step_s},
        ),
        chart("Padding, share of the processed tokens", percent, {"padding": padding_share}),
        chart(
            "Peak memory of the largest rank",
            size,
            {"memory": metrics["peak_memory_bytes"]},
        ),
        class_="charts",
    )
    versions = [(name, str(value)) for name, value in record.versions.items()]
    about = tag("div", facts(versions), class_="pair") if versions else None
    return tag("details", tag("summary", "speed, memory, versions"), charts, about)


def go_on(record: RunRecord) -> Html:
    """The commands to type next."""
    where = in_shell(record.path)
    finished = [f"sftctl chat {where}", f"sftctl export {where}"]
    commands = finished if record.status == "finished" else [f"sftctl resume {where}"]
    text = "\n".join([*commands, f"sftctl inspect-ckpt {where}"])
    return tag("pre", text, class_="commands")


def checkpoints(record: RunRecord) -> Html:
    """A table of all checkpoints, the oldest first."""
    rows = [
        (
            line.name,
            "-" if line.epoch is None else str(line.epoch),
            "-" if line.validation_loss is None else number(line.validation_loss),
            format_bytes(line.num_bytes),
            _state("complete", "good") if not line.problems else _state(line.problems[0], "bad"),
        )
        for line in record.checkpoints
    ]
    return table(("checkpoint", "epoch", "validation loss", "size", "state"), rows)


def events(record: RunRecord) -> Html:
    """A table of all events except samples, in their order."""
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
    note = tag("p", f"{left_out:,} earlier events are in events.jsonl", class_="note")
    return join(note if left_out else None, table(("time", "step", "event", "details"), rows))


def _details(event: dict[str, Any]) -> str:
    """An event as a sentence. If there is no sentence for this event: its fields."""
    name, step = event["event"], event["step"]
    fields = {key: v for key, v in event.items() if key not in ("event", "step", "time")}
    nothing_said = f"{name} at step {step}"
    try:
        sentence = event_line(name, step, fields)
    except (LookupError, ValueError, TypeError):  # an event of another version
        sentence = nothing_said
    if fields and sentence == nothing_said:
        return ", ".join(f"{key}: {_plain(value)}" for key, value in fields.items())
    return sentence


def _plain(value: object) -> str:
    if isinstance(value, float):
        return number(value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _state(word: str, kind: str) -> Html:
    return tag("span", word, class_=f"state {kind}")


def configuration(record: RunRecord) -> Html:
    """All keys and values. Values that differ from the default are highlighted."""
    return tag("div", *_config_sections(record), class_="config")


def _config_sections(record: RunRecord) -> Iterator[Html]:
    for section, values in record.config.items():
        lines = [
            tag(
                "div",
                tag("dt", key, title=documentation().get(f"{section}.{key}")),
                tag("dd", _setting(value)),
                class_="changed" if _is_chosen(f"{section}.{key}", value) else None,
            )
            for key, value in values.items()
        ]
        yield tag("section", tag("h3", section), tag("dl", *lines, class_="facts"))


def _is_chosen(key: str, value: object) -> bool:
    """Whether the user set this value. False for keys that a run may resolve by itself."""
    return key not in _RESOLVED and (key not in keys() or default_of(key) != value)


def _setting(value: object) -> str:
    return ("off", "on")[value] if isinstance(value, bool) else str(value)
