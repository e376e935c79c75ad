"""A table that leaves out columns if the terminal is too narrow. Cells are never shortened."""

from collections.abc import Iterable

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from sftctl.cli.show.output import SafeTable

_GAP = 2
_Row = tuple[list[Text], str | None]


class FittingTable:
    """A table with one line for each row, if the cells fit.

    If the terminal is too narrow, the columns in `first_to_go` are left out, in this order. A row
    with fewer cells than columns is a remark. It does not make columns wider.
    """

    def __init__(
        self,
        *heads: str,
        first_to_go: Iterable[str] = (),
        right: Iterable[str] = (),
        title: str | None = None,
    ) -> None:
        self._heads, self._title = heads, title
        self._first_to_go, self._right = [*first_to_go], {*right}
        self._rows: list[_Row] = []

    def add_row(self, *cells: str | Text, style: str | None = None) -> None:
        """Add a row. Control characters in the cells are escaped."""
        self._rows.append(([c if isinstance(c, Text) else Text(c) for c in cells], style))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown, fits = self._columns_that_fit(options.max_width)
        table = SafeTable(
            title=self._title,
            title_justify="left",
            box=None,
            pad_edge=False,
            padding=(0, _GAP, 0, 0),
        )
        for number in shown:
            head = self._heads[number]
            justify = "right" if head in self._right else "left"
            folds = not fits and number == 0
            table.add_column(
                head,
                justify=justify,  # type: ignore[arg-type]
                no_wrap=not folds,
                overflow="fold",
            )
        for cells, style in self._rows:
            table.add_row(*(cells[i] for i in shown if i < len(cells)), style=style)
        yield table

    def _columns_that_fit(self, room: int) -> tuple[list[int], bool]:
        """The indices of the columns to show, and whether they fit without wrapping the first."""
        widths = [self._width(number) for number in range(len(self._heads))]
        shown = [*range(len(self._heads))]
        for head in (*self._first_to_go, None):
            if sum(widths[number] for number in shown) + _GAP * (len(shown) - 1) <= room:
                return shown, True
            shown = [number for number in shown if self._heads[number] != head]
        return shown, False

    def _width(self, number: int) -> int:
        """The width of a column. The title of a column may have two lines."""
        head = max(map(cell_len, self._heads[number].split("\n")))
        complete = (cells for cells, _ in self._rows if len(cells) == len(self._heads))
        return max([head, *(cells[number].cell_len for cells in complete)])
