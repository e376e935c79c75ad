"""Command-line flags that set configuration keys, and flags that several commands share."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from sftctl.cli import streams
from sftctl.config.keys import default_of, documentation, type_of
from sftctl.config.schema import Auto
from sftctl.errors import ConfigError
from sftctl.words import in_shell, printable

_SHORTER_NAMES = {"data.path": "--data", "model.name": "--model", "adapter.start": "--adapter"}
_SEVERAL = ("data.path",)  # keys whose flag can be repeated
_MORE_NAMES = {"optim.learning_rate": "--lr", "train.batch_size": "-b", "output_dir": "-o"}

ConfigFlags = Mapping[str, object]
"""The configuration flags that the user typed: dotted key -> value."""


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag that sets a configuration key, and a help text that replaces the documentation."""

    key: str
    help: str


def flag_name(key: str) -> str:
    """`optim.learning_rate` -> `--learning-rate`."""
    return _SHORTER_NAMES.get(key, f"--{key.rpartition('.')[2].replace('_', '-')}")


def config_flags(
    *flags: str | Flag, several_data: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add configuration flags to a command. The command gets their values in its argument `flags`.

    A flag is a dotted key, or a `Flag` with its own help text. The command must take only keyword
    arguments. In the signature that typer reads, `flags` is replaced by one optional parameter for
    each flag. `flags` has only the keys that the user typed. `several_data`: --data may be
    repeated, and its value is a list.
    """
    options = {_key(flag): _parameter(flag) for flag in flags}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def with_flags(**arguments: Any) -> None:
            values = {key: arguments.pop(option.name) for key, option in options.items()}
            typed = {key: value for key, value in values.items() if value not in (None, [])}
            if not several_data:
                typed = {key: _once(key, value) for key, value in typed.items()}
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


def with_sources(flags: ConfigFlags) -> ConfigFlags:
    """Convert the list of --data. One path sets `data.path`. Several paths set `data.sources`, and
    each source is named after its file."""
    from sftctl.config.sources import sources_of

    paths = flags.get("data.path")
    if not isinstance(paths, list):
        return flags
    if len(paths) == 1:
        return {**flags, "data.path": paths[0]}
    return {**flags, "data.path": None, "data.sources": sources_of(paths)}


def _once(key: str, value: Any) -> Any:
    """The value of a flag. Raises ConfigError if the flag was typed twice, because only one value
    could be used."""
    if not isinstance(value, list):
        return value
    if len(value) > 1:
        raise ConfigError(
            f"{flag_name(key)} is given {len(value)} times: {', '.join(value)}",
            hint="put them into one store: "
            f"`sftctl prepare-data {' '.join(map(in_shell, value))} --output STORE`",
        )
    return value[0]


def _key(flag: str | Flag) -> str:
    return flag.key if isinstance(flag, Flag) else flag


def _parameter(flag: str | Flag) -> inspect.Parameter:
    """The parameter from which typer makes this flag."""
    key = _key(flag)
    name = flag_name(key)
    annotation: Any
    if isinstance(flag, Flag):
        annotation = Annotated[str | None, typer.Option(*_spellings(key, name), help=flag.help)]
    elif type_of(key) is bool:
        annotation = Annotated[bool | None, _option(key, f"{name}/--no-{name[2:]}")]
    elif key in _SEVERAL:
        annotation = Annotated[list[str] | None, _option(key, name)]
    else:
        annotation = Annotated[str | None, _option(key, name)]
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(key.replace(".", "_"), kind, default=None, annotation=annotation)


def _option(key: str, name: str) -> Any:
    """The option of a key. Its help text is the documentation of the key and the default."""
    default = default_of(key)
    shown = "" if default is None or isinstance(default, bool) else f" Default: {default}."
    return typer.Option(
        *_spellings(key, name),
        help=documentation()[key] + shown,
        rich_help_panel=key.split(".")[0],
        metavar=_metavar(type_of(key)),
    )


def _spellings(key: str, name: str) -> list[str]:
    """The names of a flag: the long name, and the short name if there is one."""
    return [name, _MORE_NAMES[key]] if key in _MORE_NAMES else [name]


def _metavar(kind: Any) -> str | None:
    """The placeholder for a number: `<int>`, `<int|auto>` or `<float>`. None: typer chooses it.

    For typer, a number is text. The schema checks the numbers, so that one error reports all wrong
    values.
    """
    words = {int: "int", float: "float"}
    numbers = [words[one] for one in (kind, *get_args(kind)) if one in words]
    auto = "|auto" if Auto in get_args(kind) else ""
    return f"<{numbers[0]}{auto}>" if numbers else None


def run_or_newest(path: Path | None, *, unfinished: bool = False) -> Path:
    """The path that was typed. If there is none: the newest run, which is printed on stderr.

    `unfinished`: prefer the newest run that is not finished, if there is one.
    """
    if path is not None:
        return path
    from sftctl.runs.newest import newest_run

    run, which = newest_run(), "the newest"
    if unfinished:
        from sftctl.runs.overview import newest_unfinished

        found = newest_unfinished(run)
        if found != run:
            run, which = found, "the newest that has not finished"
    streams.tell(f"run: {printable(str(run))} ({which})")
    return run


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
TemplateOption = Annotated[
    list[str] | None,
    typer.Option("--template-option", metavar="KEY=VALUE", help="An option of the chat template."),
]
AnyModel = Annotated[
    Path | None,
    typer.Argument(
        help="A run, a checkpoint, a model or adapter directory, a .gguf or .pth file, or a hub "
        "name. Default: the newest run.",
        metavar="[PATH]",
        readable=False,
    ),
]
ChatTemplate = Annotated[
    str | None,
    typer.Option(
        "--chat-template",
        metavar="FILE|chatml",
        help="A Jinja file that replaces the chat template of the model, or chatml.",
    ),
]
ModelTokenizer = Annotated[
    str | None,
    typer.Option(
        "--tokenizer", help="Tokenizer for a model that has none, such as a .pth file of MiniMind."
    ),
]
RanksHere = Annotated[
    int,
    typer.Option("--nproc-per-node", min=1, help="Number of processes (ranks) on this machine."),
]
MaxRestarts = Annotated[
    int,
    typer.Option("--max-restarts", min=0, help="Restart up to N times if a process dies."),
]
VerifyData = Annotated[
    bool,
    typer.Option(
        "--verify-data", help="Check the hashes of the store before training, not during training."
    ),
]
