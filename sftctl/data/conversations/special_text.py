"""Find messages that contain the text of a special token, such as `<|im_end|>`.

The tokenizer would turn such a text into the special token. Three kinds of messages contain it:
- prompts that were already rendered with a chat template
- answers that include their end-of-turn token
- messages in which somebody wrote special tokens to fake another turn
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from sftctl.data.conversations.conversation import Conversation
from sftctl.data.ledger import BadRow

_MARKS = re.compile(r"<\|[^|<>\s{}]{1,40}\|>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>")
_PART_OF_ANSWERS = re.compile(r"</?(think|tool_call|tool_calls|tool_response)>")
_BREAK = "\u200b"  # zero-width space: invisible, and no special token has one


class SpecialTexts:
    """Finds the texts of special tokens, and of marks in the template, such as `[INST]`."""

    def __init__(self, special: Iterable[str] = (), template: str = "") -> None:
        texts = {*special, *_MARKS.findall(template)}
        self.texts = sorted(
            (text for text in texts if text.strip() and not _PART_OF_ANSWERS.fullmatch(text)),
            key=len,
            reverse=True,
        )
        self._pattern = re.compile("|".join(map(re.escape, self.texts)) or r"(?!)")
        starts = {form for text in self.texts for form in _starts_in_json(text)}
        escaped = sorted(start for start in starts if b"\\u" in start)
        self._escaped = re.compile(b"|".join(map(re.escape, escaped)) or b"(?!)")
        # Searching for one byte is much faster than for two.
        self._starts = [
            (first, [start for start in starts if start.startswith(first)])
            for first in sorted({start[:1] for start in starts.difference(escaped)})
        ]

    def may_hold(self, raw: bytes) -> bool:
        """Whether the JSON text of a row may contain a special text. Nothing is parsed.

        False is certain. True can be wrong.
        """
        for first, starts in self._starts:
            if first in raw and any(start in raw for start in starts):
                return True
        return b"\\u" in raw and self._escaped.search(raw) is not None

    def first(self, row: Conversation) -> tuple[int, str] | None:
        """The number of the first message with a special text, and this text.

        Messages are numbered from 1; number 0 stands for the tools. None if there is no such text.
        """
        for number, part in ((0, row.tools), *enumerate(row.messages, 1)):
            for text in _texts(part):
                if found := self._pattern.search(text):
                    return number, found[0]
        return None

    def escaped(self, row: Conversation) -> Conversation:
        """The row with a zero-width space inside each special text. So no special text becomes a
        token."""
        messages = tuple(_mapped(message, self._broken) for message in row.messages)
        return replace(row, messages=messages, tools=_mapped(row.tools, self._broken))

    def _broken(self, text: str) -> str:
        return self._pattern.sub(lambda match: match[0][0] + _BREAK + match[0][1:], text)


def where(row: Conversation, number: int, text: str) -> str:
    """A description for messages: `rows.jsonl:3: message 2 (user) holds <|im_end|>`."""
    part = f"message {number} ({row.messages[number - 1]['role']})" if number else "the tools"
    return f"{row.source}: {part} {'hold' if part == 'the tools' else 'holds'} {text}"


def refusal(row: Conversation, number: int, text: str) -> BadRow:
    """The error for a row with a special text, if `--special-text` is `refuse`."""
    message = f"{where(row, number, text)}, which would become a special token"
    return BadRow("special_text", message, "remove it, or prepare with --special-text escape")


def _starts_in_json(text: str) -> Iterable[bytes]:
    """All ways to write the first two characters in JSON, with and without \\u escapes."""
    first, second = text[0], text[1:2]
    yield (first + second).encode()
    for letters in ("04x", "04X"):
        yield f"\\u{ord(first):{letters}}".encode()
        if second and not second.isascii():
            yield f"{first}\\u{ord(second):{letters}}".encode()


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _texts(inner)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(inner, change) for key, inner in value.items()}
    if isinstance(value, list):
        return [_mapped(inner, change) for inner in value]
    return value
