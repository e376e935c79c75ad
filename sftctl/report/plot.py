"""The parts of a chart: axes, an SVG that stretches with the page, and labels in HTML."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sftctl.report.markup import Content, Html, join, tag

SIZE = 1000
"""Width and height of an SVG, in units of the SVG."""

Format = Callable[[float], str]


@dataclass(frozen=True, slots=True)
class Axis:
    """A linear or logarithmic scale from `low` to `high`."""

    low: float
    high: float
    is_log: bool = False
    only_integers: bool = False  # True: only integers are labelled

    @classmethod
    def around(cls, values: Sequence[float], from_zero: bool) -> "Axis":
        """A scale with some space at both ends. Logarithmic if values differ by a large factor."""
        middle = sorted(values)[len(values) // 2]
        if not from_zero and min(values) > 0 and max(values) > 30 * middle:
            return cls.logarithmic(values)
        return cls.linear(values, from_zero)

    @classmethod
    def logarithmic(cls, values: Sequence[float]) -> "Axis":
        """A logarithmic scale for positive values."""
        return cls(math.log10(min(values)) - 0.05, math.log10(max(values)) + 0.05, True)

    @classmethod
    def linear(cls, values: Sequence[float], from_zero: bool) -> "Axis":
        """A linear scale."""
        low, high = min(values), max(values)
        space = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
        return cls(0.0 if from_zero else low - space, high + space)

    def share(self, value: float) -> float:
        """The position of a value on the axis, from 0 (bottom or left) to 1 (top or right)."""
        position = math.log10(value) if self.is_log else value
        return (position - self.low) / (self.high - self.low)

    def ticks(self, about: int = 4) -> list[float]:
        """The values to label."""
        if self.is_log:
            powers = [10.0**p for p in range(math.floor(self.low), math.floor(self.high) + 1)]
            inside = [p for p in powers if math.log10(p) >= self.low]
            if len(inside) >= 2:
                return inside
            steps = [p * k for p in powers for k in (1, 2, 5)]  # for less than two decades
            return [tick for tick in steps if self.low <= math.log10(tick) <= self.high]
        found = ticks(self.low, self.high, about)
        return [tick for tick in found if tick == int(tick)] if self.only_integers else found


def picture(title: str, description: str, *drawn: Content) -> Html:
    """An SVG without visible text. `description` is for screen readers."""
    return tag(
        "svg",
        tag("title", title),
        tag("desc", description),
        *drawn,
        viewBox=f"0 0 {SIZE} {SIZE}",
        preserveAspectRatio="none",
        role="img",
    )


def plot(canvas: Html, values: Axis, form: Format, below: Sequence[Html]) -> Html:
    """A canvas with the labels of its two axes."""
    return tag("div", _labels(values, form), canvas, tag("div", *below, class_="x"), class_="plot")


def x_label(text: str, share: float) -> Html:
    """A label of the horizontal axis."""
    return tag("span", text, style=f"left:{100 * share:.2f}%")


def _labels(values: Axis, form: Format) -> Html:
    spans = [
        tag("span", form(tick), style=f"bottom:{100 * values.share(tick):.2f}%")
        for tick in values.ticks()
    ]
    return tag("div", join(*spans), class_="y", aria_hidden="true")


def figure(title: str, names: Sequence[tuple[str, str]], *bodies: Html, wide: bool = False) -> Html:
    """A chart with title and legend. `names` has (name, CSS class) for the legend.

    If there is a second body, it is the same chart with a logarithmic scale. A check box switches
    between the two.
    """
    switch = None
    if len(bodies) > 1:
        box = tag("input", type="checkbox", class_="switch")
        switch = tag("label", box, "log scale", class_="switch")
    legend = [tag("span", name, class_=kind) for name, kind in names]
    caption = tag("figcaption", tag("h3", title), tag("p", *legend, switch, class_="legend"))
    return tag("figure", caption, *bodies, class_="chart wide" if wide else "chart")


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """About `about` round numbers in [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** np.floor(np.log10(raw))
    distance = float(power * min((1, 2, 2.5, 5, 10), key=lambda k: abs(k * power - raw)))
    first = int(np.ceil(low / distance - 1e-9))
    last = int(np.floor(high / distance + 1e-9))
    return [number * distance for number in range(first, last + 1)]
