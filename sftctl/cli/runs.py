"""sftctl runs."""

from pathlib import Path
from typing import Annotated

import typer

from sftctl.cli.options import Json


def runs(
    folder: Annotated[
        Path, typer.Argument(help="The folder with the runs.", metavar="[DIR]")
    ] = Path("runs"),
    json: Json = False,
) -> None:
    """List the runs in a folder: status, steps, losses, speed, and the next command."""
    from sftctl.cli.show.output import emit
    from sftctl.cli.show.runs import runs_table
    from sftctl.runs.overview import runs_in

    lines = runs_in(folder)
    emit({"runs": lines}, lambda: runs_table(folder, lines), as_json=json)
