"""Writes the help of a command: examples, then the options in two columns."""

import shutil
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from typer.core import TyperCommand

_WIDEST = 100  # longest line, in characters
_LEFT = 30  # width of the left column, with the option and its value
_EXAMPLES = {
    "prepare-data": (
        "prepare-data chats.jsonl --tokenizer ./SmolLM2 --show 3",
        "prepare-data 'chats/*.jsonl.gz' -o store --val-fraction 0.05",
    ),
    "train": (
        "train --data chats.jsonl --model ./SmolLM2 -o runs/chats",
        "train --data store --model minimind-3 --dry-run",
    ),
    "resume": ("resume runs/chats", "resume runs/chats --max-steps 2000"),
    "export": ("export runs/chats", "export runs/chats --format gguf --dtype q8_0"),
    "chat": ("chat runs/chats", 'chat runs/chats --prompt "What comes after 772?"'),
    "report": ("report runs/chats", "report runs/chats runs/others -o both.html"),
    "inspect-ckpt": ("inspect-ckpt runs/chats --verify",),
    "bench-loader": ("bench-loader --data store --workers 0,2",),
    "init": ("init chats.jsonl --model ./SmolLM2",),
}
_MOST_USED = {
    "train": ("--data", "--model", "--output-dir", "--epochs", "--learning-rate", "--batch-size")
}
_VALUES = {"<int>": "N", "<int|auto>": "N|auto", "<float>": "X", "<float|auto>": "X|auto"}
_OF_TYPES = {int: "N", float: "X", Path: "PATH"}
_OF_NAMES = {
    "--data": "PATH",
    "--output-dir": "DIR",
    "--model": "NAME",
    "--tokenizer": "NAME",
    "--set": "KEY=VALUE",
    "--allow": "KEY",
    "--prompt": "TEXT",
    "--system": "TEXT",
}


class Command(TyperCommand):
    """A command whose help is written by this module."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        options = [one for one in self.params if one.param_type_name == "option"]
        help_option = self.get_help_option(ctx)
        options += [help_option] if help_option is not None else []
        formatter.write(f"{usage(ctx)}\n\n{_paragraph(self.help or '')}")
        examples = _EXAMPLES.get(self.name or "", ())
        if examples:
            formatter.write("\n" + "".join(f"  sftctl {example}\n" for example in examples))
        arguments = [one for one in self.params if one.param_type_name == "argument"]
        parts = [("Arguments", [(one.metavar or one.name, _text(one)) for one in arguments])]
        for title, group in _groups(self.name or "", options):
            parts.append((title, [(_left(one), _text(one)) for one in group]))
        widest = max(len(name) for _, rows in parts for name, _ in rows)
        for title, rows in parts:
            if rows:
                formatter.write(f"\n{title}\n{columns(rows, widest)}")


def usage(ctx: Any) -> str:
    """The first line of the help: `Usage: sftctl train [OPTIONS] [RUN.toml]`"""
    names = [
        one.metavar or (one.name if one.required else f"[{one.name}]").upper()
        for one in ctx.command.params
        if one.param_type_name == "argument"
    ]
    return " ".join(["Usage:", ctx.command_path, "[OPTIONS]", *names])


def columns(rows: Sequence[tuple[str, str]], widest: int = _LEFT) -> str:
    """Write (name, text) rows as two columns. The texts are wrapped within the right column.

    `widest` is the length of the longest name.
    """
    left = 2 + min(_LEFT, widest)
    lines = []
    for name, text in rows:
        wrapped = textwrap.wrap(text, _width() - left - 2) or [""]
        if len(name) > left - 2:
            lines.append(f"  {name}")
            name = ""
        lines.append(f"  {name:{left}}{wrapped[0]}".rstrip())
        lines += [" " * (left + 2) + line for line in wrapped[1:]]
    return "\n".join(lines) + "\n"


def _width() -> int:
    return min(_WIDEST, shutil.get_terminal_size().columns)


def _paragraph(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), _width()) + "\n"


def _groups(command: str, options: Sequence[Any]) -> Iterator[tuple[str, list[Any]]]:
    """Yield (title, options): the most used options, other options, and one group per section."""
    names = _MOST_USED.get(command, ())
    first = [one for name in names for one in options if name in one.opts]
    if first:
        yield "Most used", first
    others: dict[str, list[Any]] = {}
    for one in options:
        if one not in first:
            panel = getattr(one, "rich_help_panel", None)
            others.setdefault(f"Options of [{panel}]" if panel else "Options", []).append(one)
    yield "Options", others.pop("Options")
    yield from others.items()


def _left(option: Any) -> str:
    """The left column of an option: `-b, --batch-size N`"""
    names = sorted(option.opts, key=len)
    if option.secondary_opts:
        return f"{', '.join(names)}, {', '.join(option.secondary_opts)}"
    value = "" if option.is_flag or option.count else _value(option)
    return f"{', '.join(names)} {value}".rstrip()


def _value(option: Any) -> str:
    if option.metavar:
        return _VALUES.get(option.metavar, str(option.metavar))
    kind = option.type_descriptor.annotation
    words = [one for one in get_args(kind) if isinstance(one, str)]  # the words of a Literal
    kind = next(iter(get_args(kind)), kind)
    return "|".join(words) or _OF_NAMES.get(option.opts[0], _OF_TYPES.get(kind, "VALUE"))


def _text(parameter: Any) -> str:
    """The help text of an option. The default is added if the text does not mention a default."""
    text, default = parameter.help or "", parameter.default
    is_shown = default is not None and not isinstance(default, bool) and not callable(default)
    if not is_shown or "efault" in text or default in ((), [], ""):
        return text
    return f"{text} Default: {default}."
