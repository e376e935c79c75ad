"""Formats numbers, tables and lists of facts for the page."""

import time
from collections.abc import Iterable, Sequence

from sftctl.report.markup import Content, Html, tag
from sftctl.words import format_bytes


def count(value: float) -> str:
    """An integer as text: `12,345`"""
    return f"{value:,.0f}"


def short_count(value: float) -> str:
    """Three digits and a letter: `950`, `12.3k`, `4.56M`, `7.89G`"""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * unit:  # 999,999 is 1M, not 1e+03k
            return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}"


def percent(share: float) -> str:
    """A percentage with three significant digits: `12.3%`, `0.05%`"""
    return f"{100 * share:.3g}%"


def number(value: float) -> str:
    """A number with four significant digits."""
    return f"{value:.4g}"


def size(num_bytes: float) -> str:
    """A size in bytes as text: `800 MB`, `1.2 GB`"""
    return format_bytes(num_bytes).replace(".0 ", " ")


def moment(seconds: object) -> str:
    """Local date and time of a Unix time. A dash for other values."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(str(seconds))))
    except (ValueError, OverflowError, OSError):
        return "-"


def table(head: Sequence[str], rows: Iterable[Sequence[Content]]) -> Html:
    """A table that scrolls sideways on a narrow screen."""
    header = tag("tr", *(tag("th", word, scope="col") for word in head))
    body = [tag("tr", *(tag("td", cell) for cell in row)) for row in rows]
    if not body:
        body = [tag("tr", tag("td", "none", colspan=len(head), class_="note"))]
    inner = tag("table", tag("thead", header), tag("tbody", *body))
    return tag(
        "div", inner, class_="scroll", tabindex="0", role="group", aria_label=", ".join(head)
    )


def facts(pairs: Iterable[tuple[str, Content]]) -> Html:
    """A list of names and their values."""
    lines = [tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs]
    return tag("dl", *lines, class_="facts")
