"""Results on stdout, as JSON or as text, and the pieces that all screens share."""

import sys

from rich.console import Console, Group, RenderableType
from rich.table import Table

from sftctl import jsonio
from sftctl.cli import streams


def emit(value: object, renderable: RenderableType, *, as_json: bool) -> None:
    """One JSON document, or the text for people, on stdout."""
    if as_json:
        with streams.results():
            sys.stdout.buffer.write(jsonio.dump_pretty(value))
    else:
        show(renderable)


def show(renderable: RenderableType) -> None:
    """Print for people, on stdout; in a pipe no line is wrapped or filled up with blanks."""
    on_terminal = sys.stdout.isatty()
    console = Console(highlight=False, markup=False, width=None if on_terminal else 200)
    with console.capture() as captured:  # rich itself would end the process in a closed pipe
        console.print(renderable)
    text = captured.get()
    if not on_terminal:
        text = "".join(f"{line.rstrip()}\n" for line in text.splitlines())
    with streams.results():
        sys.stdout.write(text)


def stacked(*parts: RenderableType) -> RenderableType:
    """One below the other."""
    return Group(*parts)


def facts_table() -> Table:
    """Two columns: what, and how much."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    return table
