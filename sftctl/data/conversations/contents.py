"""Read the text of a field or a message, which is a string or a list of parts. Refuse media."""

import re
from functools import lru_cache
from typing import Any, NamedTuple

from sftctl import jsonio
from sftctl.data.ledger import BadRow

Row = dict[str, Any]

_MEDIA = re.compile(
    r"(image|img|picture|photo|pic|screenshot|pixel|video|audio|wav)s?"
    r"([_ -]?(url|path|file|file[_ -]?name|name|base64|b64|bytes|data|value|list|input)s?)?"
    r"|(multi[_ -]?modal|mm)[_ -](data|input)s?|attachments",
    re.IGNORECASE,
)
_TEXT_TYPES = frozenset({"text", "input_text", "output_text"})
_REASONING = ("thinking", "reasoning", "reasoning_content")
PART_KEYS = frozenset({"type", "text", "thought", *_REASONING})
"""All keys that are read from a part of a content, apart from its marks."""
BY_COLUMNS = "is the file ordered by columns? write one row per line, with one text in each field"


class Content(NamedTuple):
    """The text of a message, and the reasoning from its parts. None: no part is reasoning."""

    text: str
    reasoning: str | None = None


@lru_cache(1024)
def media_keys(names: tuple[str, ...]) -> tuple[str, ...]:
    """All names in `names` that are media fields, such as `image_url`."""
    return tuple(name for name in names if _MEDIA.fullmatch(name))


def require_no_media(fields: Row, where: str) -> None:
    """Raise BadRow if an image, video or audio field has a value.

    A text model does not see the media, so it can't learn an answer about them.
    """
    for key in media_keys(tuple(fields)):
        if is_filled(fields[key]):
            raise BadRow(
                "not_text",
                f"{where} {key!r} is filled, and only text can be trained",
                f"remove the row, or {key!r} if the text makes sense without it",
            )


def is_filled(value: object) -> bool:
    """Whether a value is not empty. A list of nulls is empty; joined tables have such lists."""
    if isinstance(value, dict):
        return any(map(is_filled, value.values()))
    if isinstance(value, list):
        return any(map(is_filled, value))
    return bool(value)


def text_of(row: Row, key: str) -> str:
    """The text of a field: one string, or a list of parts. Raises BadRow for other values."""
    value = row[key]
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        raise BadRow("bad_shape", f"{key!r} is a list of strings, not one text", BY_COLUMNS)
    return content_of(value, key).text


def content_of(value: object, key: str) -> Content:
    """The content of a message, from a string or from OpenAI's list of parts.

    Raises BadRow for other values, and for parts that are not text.
    """
    if isinstance(value, str):
        return Content(value)
    if not isinstance(value, list) or not value:
        hint = BY_COLUMNS if isinstance(value, dict) else None
        raise BadRow("bad_shape", f"{key!r} is not text", hint)
    if sum(isinstance(part, str) for part in value) > 1:  # it is unknown how to join the strings
        raise BadRow("bad_shape", f"{key!r} is a list of strings, not one text", BY_COLUMNS)
    texts: list[str] = []
    reasoning: list[str] = []
    for part in value:
        is_reasoning, text = part_of(part, key)
        (reasoning if is_reasoning else texts).append(text)
    return Content("".join(texts), "".join(reasoning) if reasoning else None)


def tool_result(value: object, key: str) -> str:
    """The text of a tool's result, from a string or a list of parts. Other values become JSON."""
    if isinstance(value, str):
        return value
    is_parts = isinstance(value, list) and value and all(_is_part(part) for part in value)
    return content_of(value, key).text if is_parts else jsonio.dump_text(value)


def _is_part(part: object) -> bool:
    return isinstance(part, dict) and isinstance(part.get("type"), str)


def part_of(part: object, key: str) -> tuple[bool, str]:
    """Whether a part of a content is reasoning, and its text. Raises BadRow if it is not text."""
    if isinstance(part, str):
        return False, part
    if not isinstance(part, dict):
        raise BadRow("bad_shape", f"{key!r} is not text")
    kind = part.get("type") or ("thinking" if part.get("thought") is True else "text")
    if not isinstance(kind, str) or kind not in {*_TEXT_TYPES, *_REASONING}:
        raise _not_text(key, str(kind))
    if media := next((name for name in media_keys(tuple(part)) if is_filled(part[name])), None):
        raise _not_text(key, media)
    is_reasoning = kind in _REASONING
    names = (*_REASONING, "text") if is_reasoning else ("text",)
    text = next((part[name] for name in names if part.get(name) is not None), None)
    if not isinstance(text, str):
        others = [name for name in part if name not in ("type", "text") and part[name]]
        if others and text is None:
            raise _not_text(key, others[0])
        raise BadRow("bad_shape", f"{key!r} is not text")
    if other := next((name for name in _REASONING if name not in names and part.get(name)), None):
        raise BadRow(
            "bad_shape",
            f"a text part of {key!r} also has {other!r}",
            'make it a part of its own: {"type": "thinking", "thinking": …}',
        )
    return is_reasoning, text


def _not_text(key: str, kind: str) -> BadRow:
    return BadRow(
        "not_text",
        f"{key!r} has a part of type {kind!r:.40}, and only text can be trained",
        "remove the row, or the part if the text makes sense without it",
    )
