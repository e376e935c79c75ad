"""Hints for unknown options, and the options in hints: they must be options of the command."""

import re
import shlex
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from sftctl.cli.guide.foreign import Ours, is_off, plain
from sftctl.cli.guide.foreign_keys import KEYS
from sftctl.cli.guide.foreign_words import SENTENCES
from sftctl.cli.options import flag_name
from sftctl.config.check import EVERY_KEY, checked, readings_of
from sftctl.config.keys import choices, keys
from sftctl.config.load import toml_value
from sftctl.errors import ConfigError, UnknownKey
from sftctl.words import in_shell

_OPTION = re.compile(r"(?<![\w-])(--[a-z][a-z-]*)(?:[ =]([^\s;:)`]+))?")
_COMMAND = re.compile(
    r"\b(prepare-data|train|resume|inspect-ckpt|bench-loader|export|chat|report|runs|doctor|init)\b"
)

OTHERS = KEYS | SENTENCES
_TURN_LORA_ON = ("adapter.lora", "adapter.start")
_FOR_TRAIN = ("prepare-data", "train", "init", "bench-loader")
"""Commands for which a hint may name `sftctl train`, if the command can't set a key."""


def options_of(command: Any) -> dict[str, Any]:
    """Name -> option, for all options of a command. An option may have several names."""
    names = {}
    for option in getattr(command, "params", ()):
        for name in (*option.opts, *option.secondary_opts):
            if name.startswith("-"):
                names[name] = option
    return names


def unknown_option(name: str, command: Any, typed: Sequence[str]) -> str:
    """The hint for an option that `command` does not have. `typed` is the command line."""
    options = options_of(command)
    if not name.startswith("--"):  # for `-lr 1`, the parser reports only -l
        name = next((one for one in typed if re.match(rf"{re.escape(name)}[a-z]", one)), name)
    for word in dict.fromkeys(
        (plain(name), plain(name.rpartition(".")[2]))
    ):  # LitGPT has --train.x
        spelled = next((one for one in options if plain(one) == word), None)
        if spelled is not None:
            return f"did you mean {spelled}?"
        answer = _answer(word)
        if answer is not None:
            said = _said(answer, _value_after(name, typed), command, typed)
            if said is not None:
                return said
    near = _beginning_with(name, options)
    near = near or get_close_matches(name, [one for one in options if one[:2] == "--"], 3, 0.75)
    near = near or _with_the_word(name, options)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"`{_path(command)} --help` shows the options"


def unknown_key(error: UnknownKey, command: Any, typed: Sequence[str]) -> str | None:
    """The hint for an unknown configuration key. None if no other tool has this key.

    If the key is in a file, the hint shows the lines to write into the file. If the key was typed
    with `--set`, the hint shows an option.
    """
    value = error.value
    text = str(value).lower() if isinstance(value, bool) else str(value)
    text = "" if isinstance(value, (dict, list)) else text
    for word in dict.fromkeys((plain(error.key), plain(error.key.rpartition(".")[2]))):
        if (answer := OTHERS.get(word)) is None:
            continue
        if not error.is_in_file:
            return _said(answer, text, command, typed)
        answer = answer.for_value(text)
        if answer.key is None:
            return answer.words
        pairs = _pairs(answer, text, typed)
        lines = (_line(key, one) for key, one in pairs)
        setting = f"write {' and '.join(lines)}"
        return f"{setting}; {answer.words}" if answer.words else setting
    return None


def _line(key: str, value: str) -> str:
    """A line for a configuration file: `epochs = 3 in [train]`."""
    section, _, name = key.rpartition(".")
    line = f"{name} = {toml_value(_read(key, value))}"
    return f"{line} in [{section}]" if section else f"{line} above all sections"


def _beginning_with(name: str, options: dict[str, Any]) -> list[str]:
    """At most four options that begin with `name`."""
    long = [one for one in options if one.startswith("--") and not one.startswith("--no-")]
    return [one for one in long if plain(one).startswith(plain(name))][:4]


def _with_the_word(name: str, options: dict[str, Any]) -> list[str]:
    """At most four options that contain the word `name`, or settings with a word of `name`."""
    typed = plain(name)
    near = [one for one in options if len(typed) > 2 and typed in plain(one).split("_")]
    if near or len(typed) < 4 or "--set" not in options:
        return near[:4]
    names = {key.rpartition(".")[2]: key for key in keys()}
    names |= {other: answer.key for other, answer in KEYS.items() if answer.key is not None}
    found = [key for other, key in names.items() if other.startswith(f"{typed}_")]
    found = found or [key for key in keys() if key.rpartition(".")[2] in typed.split("_")]
    found = found or [key for key in keys() if typed in key.rpartition(".")[2].split("_")]
    settings = (as_option(key, "VALUE", options) for key in dict.fromkeys(found))
    return [one for one in settings if one is not None][:4]


def _answer(word: str) -> Ours | None:
    """The answer for a key of sftctl, or for an option of another tool. None: it is neither."""
    answer = OTHERS.get(word)
    key = next((key for key in (*keys(), "output_dir") if key.rpartition(".")[2] == word), None)
    return Ours(key) if key is not None and (answer is None or answer.key is None) else answer


def _said(answer: Ours, typed_value: str, command: Any, typed: Sequence[str]) -> str | None:
    """An answer as text, with options of this command. None if it is useless for this command."""
    options, answer = options_of(command), answer.for_value(typed_value)
    if answer.key is None:
        named = next(iter(_OPTION.finditer(answer.words)), None)
        is_ours = named is None or "`" in answer.words or named[1] in options
        return answer.words if is_ours else None
    pairs = _pairs(answer, typed_value, typed)
    settings = [as_option(key, shlex.quote(one), options) for key, one in pairs]
    setting = " ".join(one for one in settings if one is not None)
    if None in settings:
        if answer.key == "output_dir" or command.name not in (*_FOR_TRAIN, "resume"):
            return None
        words = " ".join(f"--set {key}={shlex.quote(one)}" for key, one in pairs)
        setting = (
            f"`sftctl train {words}`" if command.name in _FOR_TRAIN else _in_file(pairs, typed)
        )
    if typed_value and answer.value is None and not answer.words:
        try:
            checked(answer.key, readings_of(typed_value))
        except ConfigError as problem:
            return problem.message
    return f"{setting}; {answer.words}" if answer.words else setting


def _pairs(answer: Ours, typed_value: str, typed: Sequence[str]) -> list[tuple[str, str]]:
    """(key, value) of all settings in an answer. The answer must have a key."""
    assert answer.key is not None
    value = (answer.value or "{}").replace("{}", typed_value or "VALUE")
    pairs = [(answer.key, value)]
    if answer.also is not None:
        pairs.insert(0, answer.also)
    is_of_lora = answer.key.startswith("adapter.") and answer.key not in _TURN_LORA_ON
    if is_of_lora and not {"--lora", "--adapter"} & {*typed}:
        pairs.insert(0, ("adapter.lora", "true"))
    return pairs


def _in_file(pairs: Sequence[tuple[str, str]], typed: Sequence[str]) -> str:
    """A text that says how to change a setting before a resume: in config.toml of the run."""
    lines = [f"{key} = {toml_value(_read(key, value))}" for key, value in pairs]
    run = next((one for one in typed[1:2] if not one.startswith("-")), "RUN_DIR")
    file = in_shell(f"{run.rstrip('/')}/config.toml")
    return f"resume has no option for it: write {' and '.join(lines)} into {file}"


def _read(key: str, value: str) -> object:
    """A text as a value with the type of the key. If that fails, the text itself."""
    try:
        return checked(key, readings_of(value))
    except ConfigError:
        return value


def as_option(key: str, value: str, options: dict[str, Any]) -> str | None:
    """How to set a key with these options: its flag, or --set. None: the key can't be set."""
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
    """The value that was typed after an option. Empty if there is none."""
    for place, word in enumerate(typed):
        head, equals, value = word.partition("=")
        if head == name and equals and value:
            return value
        if word == name and place + 1 < len(typed) and not typed[place + 1].startswith("--"):
            return typed[place + 1]
    return ""


def hint_for(hint: str, command: Any) -> str:
    """Change a hint so that it names only options of the typed command.

    Lower layers use the flags of prepare-data in their hints. Other commands set the same keys in
    other ways:
    - train: with `--set KEY=VALUE`
    - resume: in config.toml of the run
    - init: not at all, so the hint names `sftctl train`
    Options after the name of a command do not change. `sftctl …` becomes the typed command.
    """
    way = " --run" if command.name == "bench-loader" else ""
    hint = hint.replace("sftctl … ", f"sftctl {command.name}{way} ")
    options, keys_of_flags = options_of(command), {flag_name(key): key for key in keys()}
    keys_of_flags["--template-option"] = "data.template_options"
    takes_set, in_file = "--set" in options, command.name == "resume"
    is_init = command.name == "init"
    if not takes_set and not in_file and options.keys() & keys_of_flags.keys():
        hint = hint.replace(EVERY_KEY, f"`{_path(command)} --help` shows the options")

    def spoken(found: re.Match[str]) -> str:
        flag, value = found[1], found[2] or ""
        key = keys_of_flags.get(flag)
        if flag in options or key is None or not (takes_set or in_file or is_init):
            return found[0]
        if command_before(hint, found.start()) is not None:
            return found[0]
        if is_init and value and hint[: found.start()].count("`") % 2 == 0:
            return f"`sftctl train --data FILE --set {key}={value}`"
        if key == "data.template_options":
            return f"{key} ({value})" if "=" in value else f"{key}{found[0].removeprefix(flag)}"
        if in_file and value in choices(key):
            return f'{key} = "{value}" in config.toml'
        if takes_set and ("=" in value or value.rstrip(",") in choices(key) or value.isupper()):
            return f"--set {key}={value}"
        return f"{key}{found[0].removeprefix(flag)}"

    return _OPTION.sub(spoken, hint)


def command_before(hint: str, end: int) -> str | None:
    """The command to which an option at position `end` of a hint belongs. It is named before the
    option in the same clause. None: no command is named there."""
    clause = re.split(r"[,;] ", hint[:end])[-1]
    found = _COMMAND.findall(clause)
    return found[-1] if found else None


def _path(command: Any) -> str:
    return f"sftctl {command.name}"
