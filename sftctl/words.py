"""Counts, sizes and durations as text, and text from files made safe to print."""

import re
import shlex
import unicodedata
from collections.abc import Sequence

_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control, format, lone surrogate, line break
_JOINERS = "\u200c\u200d"  # needed between Persian letters and between emoji
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_UNITS = ("B", "kB", "MB", "GB", "TB")
_SPANS = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))
_NEXT_UNIT = 999.95  # from here on, one decimal would give 1000.0


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """`1 rank` or `2,000 ranks`. Give `plural` if it is not the noun with an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def parameters_text(number: int, trained: int) -> str:
    """`63,912,192 parameters`; if not all are trained, also how many are."""
    all_of_them = counted(number, "parameter")
    return all_of_them if trained == number else f"{all_of_them}, of which {trained:,} are trained"


def format_bytes(num_bytes: float) -> str:
    """`12.3 MB`: with one decimal, in the largest unit (a power of 1000) that gives 1 or more."""
    value, unit = float(num_bytes), 0
    while value >= _NEXT_UNIT and unit + 1 < len(_UNITS):
        value, unit = value / 1000, unit + 1
    return f"{value:,.{1 if unit else 0}f} {_UNITS[unit]}"


def format_age(seconds: float) -> str:
    """`3 hours ago`: in the largest unit that gives 2 or more."""
    length, unit = next((s for s in _SPANS if seconds >= 2 * s[0]), _SPANS[-1])
    return f"{counted(round(seconds / length), unit)} ago"


def format_duration(seconds: float) -> str:
    """`1:32` for 92 seconds; `2:05:00` from one hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def printable(text: str, keep: str = "") -> str:
    """Text from a file, safe to print: control characters and line breaks become `\\x1b`, `\\n`.

    So a file can't move the cursor, change colours or forge a line. Characters in `keep` stay.
    """
    if text.isprintable():
        return text
    return "".join(_escaped(letter) if is_hidden(letter, keep) else letter for letter in text)


def is_hidden(letter: str, keep: str) -> bool:
    """Whether `printable` escapes this letter."""
    return unicodedata.category(letter) in _HIDDEN and letter not in keep and letter not in _JOINERS


def _escaped(letter: str) -> str:
    code = ord(letter)
    short = f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
    return _SHORT.get(letter, short if code < 1 << 16 else f"\\U{code:08x}")


def ranges_of(numbers: Sequence[int]) -> str:
    """Ascending numbers as text, such as `3, 7 to 9`. At most five numbers or ranges are shown."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    texts = [str(a) if a == b else f"{a} to {b}" for a, b in ranges[:5]]
    return ", ".join(texts) + (", …" if len(ranges) > 5 else "")


def in_shell(path: object) -> str:
    """A path as one word of a shell command, so that a user can copy the command.

    A path that begins with a hyphen gets `./` in front: it would be read as an option.
    """
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


_WORD = re.compile(r"\s*(?:[^\s`]*`[^`]*`[^\s`]*|\S+)")  # a command in backticks is one word


def wrapped(text: str, width: int) -> str:
    """The text with line breaks between words, because a terminal would break inside a word.

    A command in backticks stays on one line: a line break would be copied with the command.
    """
    return "\n".join(_wrapped_line(line, max(2, width)) for line in text.split("\n"))


def _wrapped_line(line: str, width: int) -> str:
    if sum(map(num_cells, line)) <= width:
        return line
    lines, column = [""], 0
    for word in _WORD.findall(line):
        cells = sum(map(num_cells, word))
        if column and column + cells > width:
            word = word.lstrip()
            lines.append("")
            column, cells = 0, sum(map(num_cells, word))
        lines[-1], column = lines[-1] + word, column + cells
    return "\n".join(lines)


def shortened(text: str, width: int) -> str:
    """The text; if it is wider than `width`, its middle is cut: `loading ...els/SmolLM2`."""
    if sum(map(num_cells, text)) <= width:
        return text
    start = f"{text.partition(' ')[0]} ..."
    room, kept = width - sum(map(num_cells, start)), len(text)
    while kept and (room := room - num_cells(text[kept - 1])) >= 0:
        kept -= 1
    return start[:width] + text[kept:]


def num_cells(letter: str) -> int:
    """The columns of a letter: 0 if it is drawn over the one before, 2 if it is wide, else 1."""
    if unicodedata.combining(letter) or unicodedata.category(letter) in ("Cf", "Mn"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1
