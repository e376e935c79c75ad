"""Print results on stdout, as JSON or as text.

Also the parts (tables, escaped text) that the output of all commands is built from.
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

_ANY_WIDTH = 100_000  # assumed for a pipe: nothing is wrapped, a table has all its columns


def emit(value: object, text: Callable[[], RenderableType], *, as_json: bool) -> None:
    """Print on stdout: `value` as one JSON document, or `text()`.

    For JSON, `text` is not called.
    """
    if as_json:
        with streams.results():
            sys.stdout.buffer.write(jsonio.dump_printable(value))
    else:
        show(text())


def show(renderable: RenderableType) -> None:
    """Print text on stdout. In a pipe, lines are not wrapped and have no trailing blanks.

    Control characters in the text are escaped; styles come from rich alone. A plain str is one
    line; `text_lines` makes several.
    """
    if isinstance(renderable, str):
        renderable = Text(printable(renderable))
    on_terminal = sys.stdout.isatty()
    memory = io.StringIO()  # printing directly, rich would fail or exit if nobody reads stdout
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
    """The parts, one below the other."""
    return Group(*parts)


def text_lines(lines: Iterable[str]) -> Text:
    """Lines of text; a line break within one of them is escaped."""
    return Text("\n".join(map(printable, lines)))


class SafeTable(Table):
    """A table whose cells may come from a file: line breaks and control characters are escaped."""

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
    table.add_column(overflow="fold")  # rich would shorten a path that is wider than the column
    return table
