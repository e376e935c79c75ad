"""A page that compares several runs: curves in common charts, and different settings."""

from collections.abc import Callable, Sequence

import numpy as np

from sftctl.errors import ConfigError
from sftctl.report.charts import Series, line_chart
from sftctl.report.downsample import Bucket, Numbers, downsampled
from sftctl.report.markup import Content, Html, tag
from sftctl.report.plot import Format
from sftctl.report.record import VALIDATION_LOSS, RunRecord
from sftctl.report.wording import number, percent, short_count, size, table
from sftctl.words import counted

MOST_RUNS = 8
"""At most so many runs on one page, because readers can't distinguish more colours."""

_MOST_CHARTS = 12  # of sources; of sets and metrics


def names_of(records: Sequence[RunRecord]) -> list[str]:
    """A name for each run: the name of its folder, or the path if two folders have the same name.

    Raises ConfigError if there are too many runs.
    """
    if len(records) > MOST_RUNS:
        raise ConfigError(
            f"{counted(len(records), 'run')}: a page can compare at most {MOST_RUNS} runs",
            hint="leave out some runs",
        )
    names = [record.path.absolute().name for record in records]
    is_unique = len(set(names)) == len(names)
    return names if is_unique else [str(record.path) for record in records]


def overview(records: Sequence[RunRecord], names: Sequence[str]) -> Html:
    """A table with one row for each run."""
    head = ("run", "status", "steps", "loss", "validation loss", "best", "tokens per second")
    return table(head, [_row(*one) for one in zip(records, names, strict=True)])


def _row(record: RunRecord, name: str) -> list[str]:
    loss, of = record.metrics["loss"], record.total_steps
    validation = record.validation()
    goal, best, step = record.chosen_by
    of_what = "" if goal == VALIDATION_LOSS else f" ({goal})"
    return [
        name,
        record.status,
        f"{record.last_step:,}" + (f" of {of:,}" if of is not None else ""),
        _span(loss[0], loss[-1]) if len(loss) else "-",
        _span(validation[0][1], validation[-1][1]) if validation else "-",
        "-" if best is None or not step else f"{number(best)} at step {step:,}{of_what}",
        _rate(record),
    ]


def _span(first: float, last: float) -> str:
    return f"{number(first)} → {number(last)}"


def _rate(record: RunRecord) -> str:
    seconds = float(np.nansum(record.metrics["step_time_s"]))
    return short_count(float(np.nansum(record.metrics["num_tokens"])) / seconds) if seconds else "-"


def curves(records: Sequence[RunRecord], names: Sequence[str]) -> Html:
    """One chart for each quantity. Each chart has one curve for each run."""

    def series(values: Callable[[RunRecord], Numbers]) -> list[Series]:
        return [
            Series(name, downsampled(record.steps, values(record)))
            for record, name in zip(records, names, strict=True)
        ]

    def chart(title: str, form: Format, values: Callable[[RunRecord], Numbers]) -> Html:
        return line_chart(title, series(values), [], form, from_zero=True)

    validated = [
        Series(name, _stretch(record.validation()), are_points=True)
        for record, name in zip(records, names, strict=True)
    ]
    losses = series(lambda record: record.metrics["loss"])
    return tag(
        "div",
        line_chart("Training loss", losses, [], number, wide=True, has_switch=True),
        line_chart("Validation loss", validated, [], number, wide=True),
        *(line_chart(title, series, [], number) for title, series in _by_source(records, names)),
        *(line_chart(title, series, [], number) for title, series in _by_set(records, names)),
        chart("Learning rate", number, lambda record: record.metrics["learning_rate"]),
        chart("Gradient norm, before clipping", number, lambda record: record.metrics["grad_norm"]),
        chart("Tokens per second", short_count, _tokens_per_s),
        chart("Padding, share of the processed tokens", percent, _padding_share),
        chart("Peak memory", size, lambda record: record.metrics["peak_memory_bytes"]),
        class_="charts",
    )


def _by_source(
    records: Sequence[RunRecord], names: Sequence[str]
) -> list[tuple[str, list[Series]]]:
    """(title, curves) of a chart of the training loss, for each named source."""
    charts: dict[str, list[Series]] = {}
    for record, name in zip(records, names, strict=True):
        for source, losses in record.of_sources("loss").items():
            curve = Series(name, downsampled(record.steps, losses))
            charts.setdefault(f"Training loss of {source}", []).append(curve)
    return [*charts.items()][:_MOST_CHARTS]


def _by_set(records: Sequence[RunRecord], names: Sequence[str]) -> list[tuple[str, list[Series]]]:
    """(title, curves) of a chart for each validation set and each loss or metric."""
    charts: dict[str, list[Series]] = {}
    for record, name in zip(records, names, strict=True):
        numbers = {"loss": record.set_losses()} | record.judged()
        for what, sets in numbers.items():
            for one, values in sets.items():
                curve = Series(name, _stretch(values), are_points=True)
                charts.setdefault(f"{one}: {what}", []).append(curve)
    return [*charts.items()][:_MOST_CHARTS]


def _stretch(validation: Sequence[tuple[int, float]]) -> list[list[Bucket]]:
    points = [Bucket(step, step, loss, loss, loss) for step, loss in validation]
    return [points] if points else []


def _tokens_per_s(record: RunRecord) -> Numbers:
    seconds = record.metrics["step_time_s"]
    return record.metrics["num_tokens"] / np.where(seconds > 0, seconds, np.nan)


def _padding_share(record: RunRecord) -> Numbers:
    padding = record.metrics["num_padding_tokens"]
    processed = record.metrics["num_tokens"] + padding
    return padding / np.where(processed > 0, processed, np.nan)


def differences(records: Sequence[RunRecord], names: Sequence[str]) -> Html:
    """A table of the settings that differ between the runs."""
    flat = [
        {
            f"{section}.{key}": value
            for section, keys in record.config.items()
            for key, value in keys.items()
        }
        for record in records
    ]
    every_key = dict.fromkeys(key for values in flat for key in values)
    rows: list[list[Content]] = [
        [key, *(tag("span", _shown(values.get(key)), class_="details") for values in flat)]
        for key in every_key
        if any(values.get(key) != flat[0].get(key) for values in flat)
    ]
    if not rows:
        return tag("p", "All settings are the same.", class_="note")
    return table(("setting", *names), rows)


def _shown(value: object) -> str:
    return "not set" if value is None else str(value)
