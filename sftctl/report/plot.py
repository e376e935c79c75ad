"""What all charts are made of: a scale, a picture that stretches, and words in HTML around it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sftctl.report.markup import Content, Html, join, tag

SIZE = 1000
"""Of a picture, both ways, in its own units."""

Format = Callable[[float], str]


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


def picture(title: str, told: str, *drawn: Content) -> Html:
    """An SVG without words; `told` is for those who don't see it."""
    return tag(
        "svg",
        tag("title", title),
        tag("desc", told),
        *drawn,
        viewBox=f"0 0 {SIZE} {SIZE}",
        preserveAspectRatio="none",
        role="img",
    )


def plot(canvas: Html, values: Axis, form: Format, below: Sequence[Html]) -> Html:
    """A canvas between its two scales."""
    return tag("div", _labels(values, form), canvas, tag("div", *below, class_="x"), class_="plot")


def place(words: str, share: float) -> Html:
    """A label of the lower scale."""
    return tag("span", words, style=f"left:{100 * share:.2f}%")


def _labels(values: Axis, form: Format) -> Html:
    spans = [
        tag("span", form(tick), style=f"bottom:{100 * values.share(tick):.2f}%")
        for tick in values.ticks()
    ]
    return tag("div", join(*spans), class_="y", aria_hidden="true")


def figure(title: str, names: Sequence[tuple[str, str]], body: Html, *, wide: bool = False) -> Html:
    """A chart with its title and its legend: names, each with its CSS class."""
    legend = [tag("span", name, class_=kind) for name, kind in names]
    caption = tag("figcaption", tag("h3", title), tag("p", *legend, class_="legend"))
    return tag("figure", caption, body, class_="chart wide" if wide else "chart")


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers within [low, high], some `about` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** np.floor(np.log10(raw))
    distance = float(power * min((1, 2, 2.5, 5, 10), key=lambda k: abs(k * power - raw)))
    first = int(np.ceil(low / distance - 1e-9))
    last = int(np.floor(high / distance + 1e-9))
    return [number * distance for number in range(first, last + 1)]
