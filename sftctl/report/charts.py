"""Charts: an SVG without words that stretches with the page, and its words in HTML around it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sftctl.jsonio import dump_canonical
from sftctl.report.curves import Bucket, ticks
from sftctl.report.markup import Html, join, tag

_SIZE = 1000  # the SVG's own units, both ways

Format = Callable[[float], str]


@dataclass(frozen=True, slots=True)
class Series:
    """One curve: stretches of buckets, or single points."""

    name: str
    stretches: list[list[Bucket]]
    are_points: bool = False

    @property
    def buckets(self) -> list[Bucket]:
        return [bucket for stretch in self.stretches for bucket in stretch]


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened at a step."""

    step: int
    label: str


@dataclass(frozen=True, slots=True)
class Axis:
    """From values to places in the SVG."""

    low: float
    high: float
    is_log: bool = False

    @classmethod
    def around(cls, values: Sequence[float], from_zero: bool) -> "Axis":
        """A scale with a little air; logarithmic where one linear one would hide most of it."""
        low, high = min(values), max(values)
        middle = sorted(values)[len(values) // 2]
        if not from_zero and low > 0 and high > 30 * middle:
            return cls(math.log10(low) - 0.05, math.log10(high) + 0.05, True)
        air = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
        return cls(0.0 if from_zero else low - air, high + air)

    def share(self, value: float) -> float:
        """0 at the bottom, 1 at the top."""
        place = math.log10(value) if self.is_log else value
        return (place - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        if not self.is_log:
            return ticks(self.low, self.high)
        return [10.0**power for power in range(math.ceil(self.low), math.floor(self.high) + 1)]


def line_chart(
    title: str,
    series: Sequence[Series],
    marks: Sequence[Mark],
    form: Format,
    *,
    from_zero: bool = False,
    wide: bool = False,
) -> Html:
    """Curves over steps; a chart without a value says so."""
    buckets = [bucket for one in series for bucket in one.buckets]
    if not buckets:
        return _figure(title, [], tag("p", "nothing was written yet", class_="empty"), wide)
    first = min(bucket.first_step for bucket in buckets)
    last = max(bucket.last_step for bucket in buckets)
    steps = Axis(first - 0.5, last + 0.5)
    values = Axis.around([v for b in buckets for v in (b.low, b.high)], from_zero)
    drawn = [_curve(one, steps, values, number) for number, one in enumerate(series)]
    shown_marks = [_mark(mark, steps) for mark in marks if first <= mark.step < last]
    step_ticks = [tick for tick in ticks(first, last, 5) if tick == int(tick)]
    picture = tag(
        "svg",
        tag("title", title),
        tag("desc", "; ".join(_told(one, form) for one in series if one.buckets)),
        *(_rule(1 - values.share(tick)) for tick in values.ticks()),
        *shown_marks,
        *drawn,
        viewBox=f"0 0 {_SIZE} {_SIZE}",
        preserveAspectRatio="none",
        role="img",
    )
    plot = tag(
        "div",
        _labels(values, form),
        tag("div", picture, class_="canvas", data_curves=_for_pointer(series, steps, values, form)),
        tag("div", *(_step_label(tick, steps) for tick in step_ticks), class_="x"),
        class_="plot",
    )
    names = [(one.name, f"key s{number}") for number, one in enumerate(series) if one.buckets]
    names = names if len(series) > 1 or wide else []
    if values.is_log:
        names.append(("log scale", "note"))
    if wide:  # the first of its page explains the others
        names += _explained(buckets, bool(shown_marks))
    return _figure(title, names, plot, wide)


def _explained(buckets: Sequence[Bucket], has_marks: bool) -> list[tuple[str, str]]:
    widest = max(bucket.last_step - bucket.first_step + 1 for bucket in buckets)
    names = [("resumed", "key mark")] if has_marks else []
    if widest > 1:
        names.append((f"line: mean of {widest} steps, band: lowest to highest", "note"))
    return names


def bar_chart(
    title: str, counts: Sequence[int], edges: Sequence[float], form: Format, unit: str
) -> Html:
    """A histogram: `counts[i]` lie between `edges[i]` and `edges[i + 1]`."""
    highest = max(1, *counts)
    width = _SIZE / max(1, len(counts))
    bars = []
    for number, count in enumerate(counts):
        height = _SIZE * 0.94 * count / highest
        between = f"{form(edges[number])} to {form(edges[number + 1])} {unit}: {count:,}"
        bars.append(
            tag(
                "g",
                tag("title", between),
                _rect(number * width, 0, width, _SIZE, "hit"),
                _rect(number * width + 0.08 * width, _SIZE - height, 0.84 * width, height, "bar"),
            )
        )
    picture = tag(
        "svg",
        tag("title", title),
        tag("desc", f"{sum(counts):,} examples from {form(edges[0])} to {form(edges[-1])} {unit}"),
        *bars,
        viewBox=f"0 0 {_SIZE} {_SIZE}",
        preserveAspectRatio="none",
        role="img",
    )
    axis = Axis(edges[0], edges[-1])
    shown = [edges[0], (edges[0] + edges[-1]) / 2, edges[-1]]
    words = [tag("span", form(edge), style=f"left:{100 * axis.share(edge):.2f}%") for edge in shown]
    values = Axis(0, highest / 0.94)
    plot = tag(
        "div",
        _labels(values, "{:,.0f}".format),
        tag("div", picture, class_="canvas"),
        tag("div", *words, class_="x"),
        class_="plot",
    )
    return _figure(title, [(unit, "note")], plot, wide=False)


def _figure(title: str, names: Sequence[tuple[str, str]], body: Html, wide: bool) -> Html:
    legend = [tag("span", name, class_=kind) for name, kind in names]
    caption = tag("figcaption", tag("h3", title), tag("p", *legend, class_="legend"))
    return tag("figure", caption, body, class_="chart wide" if wide else "chart")


def _curve(series: Series, steps: Axis, values: Axis, number: int) -> Html:
    def at(step: float, value: float) -> str:
        return f"{_SIZE * steps.share(step):.1f} {_SIZE * (1 - values.share(value)):.1f}"

    drawn = []
    for stretch in series.stretches:
        centre = [at(bucket.middle, bucket.mean) for bucket in stretch]
        if series.are_points or len(stretch) == 1:
            dots = " ".join(f"M{place}h0" for place in centre)
            drawn.append(tag("path", d=dots, class_="dot"))
        if len(stretch) == 1:
            continue
        if any(bucket.high > bucket.low for bucket in stretch):
            top = [at(bucket.middle, bucket.high) for bucket in stretch]
            bottom = [at(bucket.middle, bucket.low) for bucket in reversed(stretch)]
            drawn.append(tag("path", d=f"M{' L'.join(top + bottom)}Z", class_="band"))
        drawn.append(tag("path", d=f"M{' L'.join(centre)}", class_="line"))
    return tag("g", *drawn, class_=f"s{number}")


def _told(series: Series, form: Format) -> str:
    """A curve in words, for those who don't see it."""
    first, last = series.buckets[0], series.buckets[-1]
    low = min(bucket.low for bucket in series.buckets)
    high = max(bucket.high for bucket in series.buckets)
    return (
        f"{series.name}: from {form(first.mean)} at step {first.first_step} to {form(last.mean)} "
        f"at step {last.last_step}, between {form(low)} and {form(high)}"
    )


def _for_pointer(series: Sequence[Series], steps: Axis, values: Axis, form: Format) -> str:
    """What page.js shows beside the pointer."""
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
    x = round(_SIZE * steps.share(mark.step + 0.5), 1)
    line = tag("path", d=f"M{x} 0V{_SIZE}", class_="mark")
    return tag("g", tag("title", mark.label), line)


def _rule(share: float) -> Html:
    return tag("path", d=f"M0 {_SIZE * share:.1f}H{_SIZE}", class_="rule")


def _rect(x: float, y: float, width: float, height: float, kind: str) -> Html:
    places = {"x": x, "y": y, "width": width, "height": height}
    return tag("rect", class_=kind, **{key: f"{value:.1f}" for key, value in places.items()})


def _labels(values: Axis, form: Format) -> Html:
    spans = [
        tag("span", form(tick), style=f"bottom:{100 * values.share(tick):.2f}%")
        for tick in values.ticks()
    ]
    return tag("div", join(*spans), class_="y", aria_hidden="true")


def _step_label(tick: float, steps: Axis) -> Html:
    return tag("span", f"{tick:,.0f}", style=f"left:{100 * steps.share(tick):.2f}%")
