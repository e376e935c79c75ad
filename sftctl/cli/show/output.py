"""Print results on stdout, as JSON or as text.

Also has tables and escaped text, which the output of all commands consists of.
"""

import io
import sys
from collections.abc import Callable, Iterable
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.segment import Segment, Segments
from rich.table import Table
from rich.text import Text

from sftctl import jsonio
from sftctl.cli import streams
from sftctl.words import printable

_ANY_WIDTH = 100_000  # width for a pipe: no line is wrapped, and tables have all columns


def emit(value: object, text: Callable[[], RenderableType], *, as_json: bool) -> None:
    """Print `value` as one JSON document, or else print the result of `text`."""
    if as_json:
        with streams.results():
            sys.stdout.buffer.write(jsonio.dump_printable(value))
    else:
        show(text())


def show(renderable: RenderableType) -> None:
    """Print text on stdout. In a pipe, lines are not wrapped, and have no trailing blanks.

    Control characters in the text are escaped. A str is printed as one line; use `text_lines` for
    several lines.
    """
    if isinstance(renderable, str):
        renderable = Text(printable(renderable))
    on_terminal = sys.stdout.isatty()
    memory = io.StringIO()  # not stdout, because rich exits if stdout is closed
    console = Console(
        file=memory,
        force_terminal=on_terminal or None,
        highlight=False,
        markup=False,
        emoji=False,
        width=None if on_terminal else _ANY_WIDTH,
    )
    rendered = [
        Segment(printable(segment.text, keep="\n"), segment.style)
        for segment in console.render(renderable)
        if not segment.control
    ]
    console.print(Segments(rendered))
    text = memory.getvalue()
    if not on_terminal:
        text = "".join(f"{line.rstrip()}\n" for line in text.splitlines())
    encoding = sys.stdout.encoding or "utf-8"
    with streams.results():
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))


def stacked(*parts: RenderableType) -> RenderableType:
    """All parts, one below the other."""
    return Group(*parts)


def text_lines(lines: Iterable[str]) -> Text:
    """Several lines of text. A line break inside a line is escaped."""
    return Text("\n".join(map(printable, lines)))


class SafeTable(Table):
    """A table in which line breaks and control characters of cells are escaped."""

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        super().add_row(*map(_safe_cell, cells), **options)


def _safe_cell(cell: RenderableType | None) -> RenderableType | None:
    if isinstance(cell, str):
        return printable(cell)
    if isinstance(cell, Text) and not cell.plain.isprintable():
        return Text(printable(cell.plain), style=cell.style)
    return cell


def facts_table() -> SafeTable:
    """A table of two columns: name and value."""
    table = SafeTable(
        box=None,
        padding=(0, 2),
        collapse_padding=True,
        show_header=False,
        show_edge=False,
        pad_edge=False,
    )
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")  # otherwise rich would shorten long paths
    return table
