"""Line charts over steps, and histograms."""

from collections.abc import Sequence
from dataclasses import dataclass

from sftctl.jsonio import dump_canonical
from sftctl.report.downsample import Bucket
from sftctl.report.markup import Html, tag
from sftctl.report.plot import SIZE, Axis, Format, figure, picture, plot, x_label


@dataclass(frozen=True, slots=True)
class Series:
    """One curve of a chart."""

    name: str
    stretches: list[list[Bucket]]  # the buckets of one list are connected by a line
    are_points: bool = False  # True: values are drawn as dots with a dotted line between them
    is_pale: bool = False  # True: raw values behind a smoothed curve, in a pale colour

    @property
    def buckets(self) -> list[Bucket]:
        return [bucket for stretch in self.stretches for bucket in stretch]


@dataclass(frozen=True, slots=True)
class Mark:
    """A vertical line after step `step`, with a label."""

    step: int
    label: str


def line_chart(
    title: str,
    series: Sequence[Series],
    marks: Sequence[Mark],
    form: Format,
    *,
    from_zero: bool = False,
    wide: bool = False,
    has_switch: bool = False,
) -> Html:
    """A chart of curves over steps. Without values: a sentence.

    `has_switch`: the chart is drawn twice, with a linear and a logarithmic scale. A check box
    on the page switches between these two.
    """
    buckets = [bucket for one in series for bucket in one.buckets]
    if not buckets:
        nothing = tag("p", "no values yet", class_="empty")
        return figure(title, [], nothing, wide=wide)
    first = min(bucket.first_step for bucket in buckets)
    last = max(bucket.last_step for bucket in buckets)
    steps = Axis(first - 0.5, last + 0.5, only_integers=True)
    numbers = [v for b in buckets for v in (b.low, b.high)]
    values = Axis.around(numbers, from_zero)
    plots = [_plot(title, series, marks, form, steps, values)]
    if has_switch and min(numbers) > 0:
        usual, log = Axis.linear(numbers, from_zero=False), Axis.logarithmic(numbers)
        plots = [_plot(title, series, marks, form, steps, axis) for axis in (usual, log)]
        values = usual
    names = [(one.name, f"key {_colour(number, one)}") for number, one in _named(series)]
    names = names if len(series) > 1 or wide else []
    if values.is_log:
        names.append(("log scale", "note"))
    if wide:  # the first chart of the page explains the others
        has_marks = any(first <= mark.step < last for mark in marks)
        names += _explained(buckets, has_marks)
    return figure(title, names, *plots, wide=wide)


def _named(series: Sequence[Series]) -> list[tuple[int, Series]]:
    """(number of the colour, curve) for all curves in the legend."""
    return [(number, one) for number, one in enumerate(series) if one.buckets]


def _colour(number: int, series: Series) -> str:
    """The CSS classes of a curve."""
    return "s0 pale" if series.is_pale else f"s{number}"


def _plot(
    title: str,
    series: Sequence[Series],
    marks: Sequence[Mark],
    form: Format,
    steps: Axis,
    values: Axis,
) -> Html:
    """A plot of all curves with this scale."""
    drawn = [_curve(one, steps, values, number) for number, one in enumerate(series)]
    shown_marks = [_mark(mark, steps) for mark in marks if steps.low < mark.step < steps.high - 1]
    description = "; ".join(_described(one, form) for one in series if one.buckets)
    rules = [_rule(1 - values.share(tick)) for tick in values.ticks()]
    canvas = tag(
        "div",
        picture(title, description, *rules, *shown_marks, *drawn),
        class_="canvas",
        data_curves=_for_pointer(series, steps, values, form),
    )
    below = [x_label(f"{tick:,.0f}", steps.share(tick)) for tick in steps.ticks(5)]
    return plot(canvas, values, form, below)


def _explained(buckets: Sequence[Bucket], has_marks: bool) -> list[tuple[str, str]]:
    widest = max(bucket.last_step - bucket.first_step + 1 for bucket in buckets)
    names = [("resumed", "key mark")] if has_marks else []
    if widest > 1:
        names.append((f"line: mean of {widest} steps, band: lowest to highest", "note"))
    return names


def _curve(series: Series, steps: Axis, values: Axis, number: int) -> Html:
    def at(step: float, value: float) -> str:
        return f"{SIZE * steps.share(step):.1f} {SIZE * (1 - values.share(value)):.1f}"

    drawn = []
    for stretch in series.stretches:
        centre = [at(bucket.middle, bucket.mean) for bucket in stretch]
        if series.are_points or len(stretch) == 1:
            dots = " ".join(f"M{point}h0" for point in centre)
            drawn.append(tag("path", d=dots, class_="dot"))
        if len(stretch) == 1:
            continue
        if any(bucket.high > bucket.low for bucket in stretch):
            top = [at(bucket.middle, bucket.high) for bucket in stretch]
            bottom = [at(bucket.middle, bucket.low) for bucket in reversed(stretch)]
            drawn.append(tag("path", d=f"M{' L'.join(top + bottom)}Z", class_="band"))
        kind = "link" if series.are_points else "line"
        drawn.append(tag("path", d=f"M{' L'.join(centre)}", class_=kind))
    return tag("g", *drawn, class_=_colour(number, series))


def _described(series: Series, form: Format) -> str:
    """A description of a curve, for screen readers."""
    first, last = series.buckets[0], series.buckets[-1]
    low = min(bucket.low for bucket in series.buckets)
    high = max(bucket.high for bucket in series.buckets)
    return (
        f"{series.name}: from {form(first.mean)} at step {first.first_step} to {form(last.mean)} "
        f"at step {last.last_step}, between {form(low)} and {form(high)}"
    )


def _for_pointer(series: Sequence[Series], steps: Axis, values: Axis, form: Format) -> str:
    """The values that page.js shows next to the mouse pointer, as JSON."""
    curves = [
        [
            [round(steps.share(b.middle), 5), round(1 - values.share(b.mean), 5), _reading(b, form)]
            for b in one.buckets
        ]
        for one in series
    ]
    named = [[one.name, curve] for one, curve in zip(series, curves, strict=True) if curve]
    return dump_canonical(named).decode()


def _reading(bucket: Bucket, form: Format) -> str:
    if bucket.last_step == bucket.first_step:
        return f"step {bucket.first_step}\n{form(bucket.mean)}"
    where = f"steps {bucket.first_step}-{bucket.last_step}"
    return f"{where}\n{form(bucket.mean)} ({form(bucket.low)} to {form(bucket.high)})"


def _mark(mark: Mark, steps: Axis) -> Html:
    x = round(SIZE * steps.share(mark.step + 0.5), 1)
    line = tag("path", d=f"M{x} 0V{SIZE}", class_="mark")
    return tag("g", tag("title", mark.label), line)


def _rule(share: float) -> Html:
    return tag("path", d=f"M0 {SIZE * share:.1f}H{SIZE}", class_="rule")


def bar_chart(
    title: str, counts: Sequence[int], edges: Sequence[float], form: Format, unit: str
) -> Html:
    """A histogram: `counts[i]` values are between `edges[i]` and `edges[i + 1]`."""
    highest = max(1, *counts)
    width = SIZE / max(1, len(counts))
    bars = []
    for number, count in enumerate(counts):
        height = SIZE * 0.94 * count / highest
        between = f"{form(edges[number])} to {form(edges[number + 1])} {unit}: {count:,}"
        bars.append(
            tag(
                "g",
                tag("title", between),
                _rect(number * width, 0, width, SIZE, "hit"),
                _rect(number * width + 0.08 * width, SIZE - height, 0.84 * width, height, "bar"),
            )
        )
    description = f"{sum(counts):,} examples from {form(edges[0])} to {form(edges[-1])} {unit}"
    canvas = tag("div", picture(title, description, *bars), class_="canvas")
    scale = Axis(edges[0], edges[-1])
    shown = [edges[0], edges[len(edges) // 2], edges[-1]]
    below = [x_label(form(edge), scale.share(edge)) for edge in shown]
    values = Axis(0, highest / 0.94, only_integers=True)
    body = plot(canvas, values, "{:,.0f}".format, below)
    return figure(title, [(unit, "note")], body)


def _rect(x: float, y: float, width: float, height: float, kind: str) -> Html:
    places = {"x": x, "y": y, "width": width, "height": height}
    return tag("rect", class_=kind, **{key: f"{value:.1f}" for key, value in places.items()})
