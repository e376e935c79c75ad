"""Answers to options that a command does not have, and hints with options that it has."""

import re
import shlex
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from sftctl.cli.guide.foreign import Ours, is_off, plain
from sftctl.cli.guide.foreign_keys import KEYS
from sftctl.cli.guide.foreign_words import SENTENCES
from sftctl.cli.options import flag_name
from sftctl.config.check import EVERY_KEY
from sftctl.config.keys import choices, keys

_OPTION = re.compile(r"(?<![\w-])(--[a-z][a-z-]*)(?:[ =]([^\s;:)`]+))?")
_COMMAND = re.compile(
    r"\b(prepare-data|train|resume|inspect-ckpt|bench-loader|export|chat|report|runs|doctor|init)\b"
)

OTHERS = KEYS | SENTENCES
_TURN_LORA_ON = ("adapter.lora", "adapter.start")


def options_of(command: Any) -> dict[str, Any]:
    """Every spelling of a command's options."""
    names = {}
    for option in getattr(command, "params", ()):
        for name in (*option.opts, *option.secondary_opts):
            if name.startswith("-"):
                names[name] = option
    return names


def unknown_option(name: str, command: Any, typed: Sequence[str]) -> str:
    """The hint for an option that `command` does not have; `typed` is the command line."""
    options = options_of(command)
    for word in dict.fromkeys((plain(name), plain(name.rpartition(".")[2]))):  # LitGPT's --train.x
        spelled = next((one for one in options if plain(one) == word), None)
        if spelled is not None:
            return f"did you mean {spelled}?"
        answer = _answer(word)
        if answer is not None:
            said = _said(answer, _value_after(name, typed), options, typed)
            if said is not None:
                return said
    near = get_close_matches(name, [one for one in options if one.startswith("--")], 3, 0.75)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"`{_path(command)} --help` shows the options"


def _answer(word: str) -> Ours | None:
    """Our key of that name, or what replaces an option of another tool."""
    answer = OTHERS.get(word)
    key = next((key for key in (*keys(), "output_dir") if key.rpartition(".")[2] == word), None)
    return Ours(key) if key is not None and (answer is None or answer.key is None) else answer


def _said(answer: Ours, value: str, options: dict[str, Any], typed: Sequence[str]) -> str | None:
    """An answer with options that this command has; None: it belongs to another command."""
    answer = answer.for_value(value)
    if answer.key is None:
        named = next(iter(_OPTION.finditer(answer.words)), None)
        is_ours = named is None or "`" in answer.words or named[1] in options
        return answer.words if is_ours else None
    value = (answer.value or "{}").replace("{}", value or "VALUE")
    pairs = [(answer.key, shlex.quote(value))]
    if answer.also is not None:
        pairs.insert(0, answer.also)
    is_of_lora = answer.key.startswith("adapter.") and answer.key not in _TURN_LORA_ON
    if is_of_lora and not {"--lora", "--adapter"} & {*typed}:
        pairs.insert(0, ("adapter.lora", "true"))
    settings = [as_option(*pair, options) for pair in pairs]
    setting = " ".join(one for one in settings if one is not None)
    if None in settings:
        if answer.key == "output_dir":
            return None
        setting = f"`sftctl train {' '.join(f'--set {key}={one}' for key, one in pairs)}`"
    return f"{setting}; {answer.words}" if answer.words else setting


def as_option(key: str, value: str, options: dict[str, Any]) -> str | None:
    """How a command with these options sets a key: its flag, or --set; None: it can't."""
    flag = flag_name(key)
    if flag in options:
        if not getattr(options[flag], "is_flag", False):
            return f"{flag} {value}"
        opposite = options[flag].secondary_opts
        return opposite[0] if opposite and is_off(value) else flag
    if "--set" in options and key in keys():
        return f"--set {key}={value}"
    return None


def _value_after(name: str, typed: Sequence[str]) -> str:
    """What was typed after an option, or nothing."""
    for place, word in enumerate(typed):
        head, equals, value = word.partition("=")
        if head == name and equals and value:
            return value
        if word == name and place + 1 < len(typed) and not typed[place + 1].startswith("--"):
            return typed[place + 1]
    return ""


def hint_for(hint: str, command: Any) -> str:
    """A hint that names only options of the command that was typed.

    Lower layers write their hints with the flags of prepare-data. If the typed command sets the key
    in another way, the hint names that way: for resume it is the run's config.toml. Options that
    follow the name of a command stay as they are. `sftctl …` becomes the typed command.
    """
    way = " --run" if command.name == "bench-loader" else ""
    hint = hint.replace("sftctl … ", f"sftctl {command.name}{way} ")
    options, keys_of_flags = options_of(command), {flag_name(key): key for key in keys()}
    keys_of_flags["--template-option"] = "data.template_options"
    takes_set, in_file = "--set" in options, command.name == "resume"
    if not takes_set and not in_file and options.keys() & keys_of_flags.keys():
        hint = hint.replace(EVERY_KEY, f"`{_path(command)} --help` shows the options")

    def spoken(found: re.Match[str]) -> str:
        flag, value = found[1], found[2] or ""
        key = keys_of_flags.get(flag)
        if flag in options or key is None or not (takes_set or in_file):
            return found[0]
        if command_before(hint, found.start()) is not None:
            return found[0]
        if key == "data.template_options":
            return f"{key} ({value})" if "=" in value else f"{key}{found[0].removeprefix(flag)}"
        if in_file and value in choices(key):
            return f'{key} = "{value}" in config.toml'
        if takes_set and ("=" in value or value.rstrip(",") in choices(key) or value.isupper()):
            return f"--set {key}={value}"
        return f"{key}{found[0].removeprefix(flag)}"

    return _OPTION.sub(spoken, hint)


def command_before(hint: str, end: int) -> str | None:
    """The command that a hint names before an option at `end`, in the same clause; None: it is the
    typed command."""
    clause = re.split(r"[,;] ", hint[:end])[-1]
    found = _COMMAND.findall(clause)
    return found[-1] if found else None


def _path(command: Any) -> str:
    return f"sftctl {command.name}"
