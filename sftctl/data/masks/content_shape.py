"""Split the content of a message into a shape and free texts.

The shape has the parts that a chat template may test, such as `<think>` and white space at the
ends. All other parts are free texts. If the `ContentUse` of a template is known, the template only
copies free texts to its output. So the template treats all contents of one shape in the same way.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sftctl.data.masks.thinking import THINKING_TAGS
from sftctl.model.tokenizer.content_use import ContentUse
from sftctl.model.tokenizer.tokenizer import ChatTokenizer

Shape = tuple[str, ...]
"""The fixed texts before, between and after the free texts of a content."""

_MOST_FREE_TEXTS = 32
_MOST_FIXED_CHARS = 2000
_OPEN, _CLOSE = "\ue002", "\ue003"
_MARK = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")
_RESERVED = ("\ue000", "\ue001", _OPEN, _CLOSE)
"""Characters that occur only in marks. A mark stands for a text in a rendering."""


def mark(number: int) -> str:
    """A text that stands for free text number `number`."""
    return f"{_OPEN}{number}{_CLOSE}"


def cut_at_marks(text: str) -> tuple[list[str], list[int]]:
    """The fixed texts around the marks, and the numbers of the marks."""
    parts = _MARK.split(text)
    return parts[::2], [int(number) for number in parts[1::2]]


@dataclass(frozen=True, slots=True)
class ContentShapes:
    """Splits contents into their shape and their free texts.

    The shape consists of the constants that the template looks for, the tokenizer's special tokens,
    the tags of thinking blocks, and white space that the template may strip.
    """

    strips: bool
    groups: Sequence[tuple[str, list[tuple[str, list[str]]]]] = field(repr=False)
    """The constants by their first letter, then by their first two letters."""

    @classmethod
    def of(cls, use: ContentUse, tokenizer: ChatTokenizer) -> "ContentShapes":
        """For a tokenizer and the known use of contents by its template."""
        constants = {*use.constants, *tokenizer.special_texts, *THINKING_TAGS} - {""}
        groups: dict[str, dict[str, list[str]]] = {}
        for constant in sorted(constants):
            by_start = groups.setdefault(constant[0], {})
            by_start.setdefault(constant[:2], []).append(constant)
        return cls(use.strips, [(first, [*some.items()]) for first, some in groups.items()])

    def split(self, content: str) -> tuple[Shape, list[str]] | None:
        """Shape and free texts of a content. None if the content can't be split.

        This happens if the content has characters of the marks, constants that overlap, too many
        free texts, or too many fixed characters.
        """
        if any(letter in content for letter in _RESERVED):
            return None
        found = [
            constant
            for first, by_start in self.groups
            if first in content
            for start, group in by_start
            if start in content
            for constant in group
            if constant in content
        ]
        if not found:
            return self._without_constants(content)
        longest_first = sorted(found, key=len, reverse=True)
        parts = re.split(f"({'|'.join(map(re.escape, longest_first))})", content)
        if len(parts) > 2 * _MOST_FREE_TEXTS:
            return None
        shape, free = _joined(parts)
        if sum(map(len, shape)) > _MOST_FIXED_CHARS:
            return None
        stand_in = mark(0).join(shape)
        if any(_count(c, content) != _count(c, stand_in) for c in found):
            return None  # constants that overlap
        return shape, free

    def _without_constants(self, content: str) -> tuple[Shape, list[str]]:
        core = content.strip()
        if not core:
            return (content,), []
        if not self.strips or len(core) == len(content):
            return ("", ""), [content]
        return _around(content), [core]


def _joined(parts: Iterable[str]) -> tuple[Shape, list[str]]:
    """Shape and free texts of `parts`. Every second part is a constant, the others are text."""
    shape, free = [""], list[str]()
    for index, part in enumerate(parts):
        core = "" if index % 2 else part.strip()
        if not core:
            shape[-1] += part
            continue
        before, after = _around(part)
        shape[-1] += before
        shape.append(after)
        free.append(core)
    return tuple(shape), free


def _around(text: str) -> tuple[str, str]:
    """The white space before and after a text."""
    return text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]


def _count(constant: str, text: str) -> int:
    """How often a constant occurs in a text. Overlapping occurrences are counted too."""
    count, at = 0, text.find(constant)
    while at >= 0:
        count, at = count + 1, text.find(constant, at + 1)
    return count
