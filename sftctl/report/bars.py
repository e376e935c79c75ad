"""Histograms."""

from collections.abc import Sequence

from sftctl.report.markup import Html, tag
from sftctl.report.plot import SIZE, Axis, Format, figure, picture, place, plot


def bar_chart(
    title: str, counts: Sequence[int], edges: Sequence[float], form: Format, unit: str
) -> Html:
    """A histogram: `counts[i]` lie between `edges[i]` and `edges[i + 1]`."""
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
    told = f"{sum(counts):,} examples from {form(edges[0])} to {form(edges[-1])} {unit}"
    canvas = tag("div", picture(title, told, *bars), class_="canvas")
    scale = Axis(edges[0], edges[-1])
    shown = [edges[0], (edges[0] + edges[-1]) / 2, edges[-1]]
    words = [place(form(edge), scale.share(edge)) for edge in shown]
    body = plot(canvas, Axis(0, highest / 0.94), "{:,.0f}".format, words)
    return figure(title, [(unit, "note")], body)


def _rect(x: float, y: float, width: float, height: float, kind: str) -> Html:
    places = {"x": x, "y": y, "width": width, "height": height}
    return tag("rect", class_=kind, **{key: f"{value:.1f}" for key, value in places.items()})
