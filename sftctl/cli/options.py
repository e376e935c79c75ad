"""Options that commands share, and options whose help is the docstring of a configuration key."""

from typing import Annotated, Any

import typer

from sftctl.config.schema import choices, default_of, documentation


def option(key: str, *names: str) -> Any:
    """A flag for a configuration key: its documentation and default, in its section's panel."""
    default = default_of(key)
    words = f" One of {', '.join(choices(key))}." if choices(key) else ""
    told = "" if default is None or isinstance(default, bool) else f" Default: {default}."
    text = documentation()[key] + words + told
    return typer.Option(*names, help=text, rich_help_panel=key.split(".")[0])


def given(**values: object) -> dict[str, object]:
    """`data__path=x` -> {"data.path": x}, without the flags that were left out."""
    return {k.replace("__", "."): v for k, v in values.items() if v is not None}


Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
RanksHere = Annotated[
    int, typer.Option("--nproc-per-node", min=1, help="Processes (ranks) on this machine.")
]
MaxRestarts = Annotated[
    int,
    typer.Option(
        "--max-restarts", min=0, help="Start the ranks anew when one dies, at most so many times."
    ),
]
