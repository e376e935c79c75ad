"""Command-line flags: those that set a configuration key, and those that several commands share."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Annotated, Any, get_args

import typer

from sftctl.config.keys import default_of, documentation, type_of
from sftctl.config.schema import Auto

_SHORTER_NAMES = {"data.path": "--data", "model.name": "--model"}

ConfigFlags = Mapping[str, object]
"""The configuration flags that the user typed: dotted key -> value."""


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag that sets a configuration key, with its own help text."""

    key: str
    help: str


def flag_name(key: str) -> str:
    """`optim.learning_rate` -> `--learning-rate`."""
    return _SHORTER_NAMES.get(key, f"--{key.rpartition('.')[2].replace('_', '-')}")


def config_flags(*flags: str | Flag) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a command to take these configuration flags, as its parameter `flags`.

    A flag is a dotted key, whose documentation in the schema is the help text, or a `Flag`. The
    command takes keyword arguments only. In the signature that typer reads, the flags' optional
    parameters replace `flags`; the command receives those that the user typed as `ConfigFlags`.
    """
    options = {_key(flag): _parameter(flag) for flag in flags}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def with_flags(**arguments: Any) -> None:
            values = {key: arguments.pop(option.name) for key, option in options.items()}
            typed = {key: value for key, value in values.items() if value is not None}
            command(**arguments, flags=typed)

        signature = inspect.signature(command, eval_str=True)
        parameters: list[inspect.Parameter] = []
        for parameter in signature.parameters.values():
            parameters += options.values() if parameter.name == "flags" else [parameter]
        signature = signature.replace(parameters=parameters)
        with_flags.__signature__ = signature  # type: ignore[attr-defined]
        with_flags.__annotations__ = {p.name: p.annotation for p in parameters}
        return with_flags

    return decorate


def _key(flag: str | Flag) -> str:
    return flag.key if isinstance(flag, Flag) else flag


def _parameter(flag: str | Flag) -> inspect.Parameter:
    """The parameter that makes typer offer this flag."""
    key = _key(flag)
    name = flag_name(key)
    annotation: Any
    if isinstance(flag, Flag):
        annotation = Annotated[str | None, typer.Option(name, help=flag.help)]
    elif type_of(key) is bool:
        annotation = Annotated[bool | None, _option(key, f"{name}/--no-{name[2:]}")]
    else:
        annotation = Annotated[str | None, _option(key, name)]
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(key.replace(".", "_"), kind, default=None, annotation=annotation)


def _option(key: str, name: str) -> Any:
    """The key's documentation and default as help text, in its section's panel."""
    default = default_of(key)
    shown = "" if default is None or isinstance(default, bool) else f" Default: {default}."
    return typer.Option(
        name,
        help=documentation()[key] + shown,
        rich_help_panel=key.split(".")[0],
        metavar=_metavar(type_of(key)),
    )


def _metavar(kind: Any) -> str | None:
    """`<int>`, `<int|auto>`, `<float>`; None is typer's own.

    typer reads a number as text. The schema checks it, so that all wrong values are reported
    together.
    """
    words = {int: "int", float: "float"}
    numbers = [words[one] for one in (kind, *get_args(kind)) if one in words]
    auto = "|auto" if Auto in get_args(kind) else ""
    return f"<{numbers[0]}{auto}>" if numbers else None


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
RanksHere = Annotated[
    int,
    typer.Option("--nproc-per-node", min=1, help="Number of processes (ranks) on this machine."),
]
MaxRestarts = Annotated[
    int,
    typer.Option("--max-restarts", min=0, help="Restart up to N times if a process dies."),
]
