"""Options that commands share, and options whose help is the docstring of a configuration key."""

from typing import Annotated, Any, get_args

import typer

from sftctl.config.schema import Auto, default_of, documentation, type_of


def option(key: str, *names: str) -> Any:
    """A flag for a configuration key: its documentation and default, in its section's panel."""
    default = default_of(key)
    told = "" if default is None or isinstance(default, bool) else f" Default: {default}."
    text = documentation()[key] + told
    return typer.Option(
        *names, help=text, rich_help_panel=key.split(".")[0], metavar=_metavar(type_of(key))
    )


def _metavar(kind: Any) -> str | None:
    """`<int>`, `<int|auto>`, `<float>`; None is typer's own.

    A number is taken as a text all the same, so that a wrong one is told together with all others.
    """
    words = {int: "int", float: "float"}
    numbers = [words[one] for one in (kind, *get_args(kind)) if one in words]
    auto = "|auto" if Auto in get_args(kind) else ""
    return f"<{numbers[0]}{auto}>" if numbers else None


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
