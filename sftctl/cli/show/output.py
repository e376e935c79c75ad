"""Print results on stdout, as JSON or as text; the pieces that all screens share."""

import sys

from rich.console import Console, Group, RenderableType
from rich.table import Table

from sftctl import jsonio
from sftctl.cli import streams


def emit(value: object, renderable: RenderableType, *, as_json: bool) -> None:
    """Print `value` as one JSON document, or `renderable` as text, on stdout."""
    if as_json:
        with streams.results():
            sys.stdout.buffer.write(jsonio.dump_pretty(value))
    else:
        show(renderable)


def show(renderable: RenderableType) -> None:
    """Print text on stdout. In a pipe, lines are not wrapped and have no trailing blanks."""
    on_terminal = sys.stdout.isatty()
    console = Console(highlight=False, markup=False, width=None if on_terminal else 200)
    with console.capture() as captured:  # printing directly, rich would exit on a closed pipe
        console.print(renderable)
    text = captured.get()
    if not on_terminal:
        text = "".join(f"{line.rstrip()}\n" for line in text.splitlines())
    with streams.results():
        sys.stdout.write(text)


def stacked(*parts: RenderableType) -> RenderableType:
    """The parts, one below the other."""
    return Group(*parts)


def facts_table() -> Table:
    """A table of two columns: name and value."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    return table
