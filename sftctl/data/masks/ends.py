"""The token that ends an assistant turn: the model has to write it in order to stop."""

import re
from contextlib import suppress
from functools import cache
from os.path import commonprefix
from typing import Any

from sftctl.data.ledger import BadRow
from sftctl.data.masks.render import Prefixes

_MARK = "\ue000sftctl\ue001"  # a content that nobody writes
_QUESTION = {"role": "user", "content": "?"}


def with_end(prefixes: Prefixes, turn: int, written: str) -> str:
    """A turn as the template writes it, up to and including the token that ends it.

    White space after that token is left out, because no model has to write it. If a turn has no
    such token, it ends with the special token that the template writes next, for the next message.
    If there is no such token either, it ends with the end-of-sequence token.
    """
    special, eos = prefixes.tokenizer.special_texts, prefixes.tokenizer.eos_text
    stripped = written.rstrip()
    begin, start = _content_place(prefixes, turn, written)
    if eos and eos in written[:begin]:
        raise BadRow(
            "mask_not_exact",
            f"{prefixes.row.source}: message {turn + 1}: the chat template writes {eos} before the "
            "content of this turn, where a model would stop",
            "put the content and the tool calls into messages of their own",
        )
    ends = [start + found.end() for found in _one_of(special).finditer(stripped[start:])]
    has_end = stripped.endswith(special)
    if not ends or (len(ends) == 1 and has_end):
        return stripped if has_end else written + _next_special(prefixes, turn)
    end = _end_in_history(prefixes, turn, written, ends)
    if end is None and not has_end:
        return written + _next_special(prefixes, turn)
    first_eos = stripped.find(eos, start, end) if eos else -1
    return stripped[: end if first_eos < 0 else first_eos + len(eos)]


def _content_place(prefixes: Prefixes, turn: int, written: str) -> tuple[int, int]:
    """Where the content of a turn begins and ends in its text, without white space around it.

    If the content is empty, or also occurs in the header or the end, the turn is rendered with a
    mark as its content. This shows what the template writes after a content.
    """
    messages = prefixes.row.messages
    content = messages[turn]["content"].strip()
    begin = written.find(content)
    if content and begin >= 0 and written.find(content, begin + 1) < 0:
        return begin, begin + len(content)
    with suppress(BadRow):
        marked = (*messages[:turn], messages[turn] | {"content": _MARK})
        _, found, after = prefixes.render(marked).rpartition(_MARK)
        end = len(written) - len(after)
        if found and end >= len(content) and written.endswith(after):
            begin = written.rfind(content, 0, end) if content else end
            return max(0, begin), end
    begin = max(0, written.rfind(content)) if content else 0
    return begin, begin + len(content)


@cache
def _one_of(texts: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))))


def _end_in_history(prefixes: Prefixes, turn: int, written: str, ends: list[int]) -> int | None:
    """The place where a turn ends: one of `ends`, which follow special tokens. None: where the
    template ends the turn.

    A template may write more after the last message than after others: an end-of-sequence token
    (Phi 3), or the next header (Command A). Rendering one more message finds the end.
    """
    through = prefixes.through(turn)
    before = through.removesuffix(written)
    if before == through:
        return None
    for follower in _followers(prefixes.row.messages, turn):
        with suppress(BadRow):
            later = prefixes.render((*prefixes.row.messages[: turn + 1], follower))
            common = len(commonprefix([through, later])) - len(before)
            shared = [end for end in ends if end <= common]
            if later.startswith(before) and common < len(written.rstrip()) and shared:
                return shared[-1]
            if later.startswith(through.rstrip()):
                return None
    return None


def _next_special(prefixes: Prefixes, turn: int) -> str:
    """White space and the special token that follow a turn without an end token."""
    messages = prefixes.row.messages
    through = prefixes.through(turn)
    plain: dict[str, Any] = {"role": "assistant", "content": _MARK}
    for later in _followers(messages, turn):
        for turns, text in (
            ((*messages[: turn + 1], later), through),
            ((*messages[:turn], plain, later), _MARK),
        ):
            with suppress(BadRow):
                rendered = prefixes.render(turns)
                place = 0 if text == through else rendered.find(_MARK)
                if place < 0 or not rendered.startswith(text, place):
                    continue
                if special := _leading_special(rendered[place + len(text) :], prefixes):
                    return special
    return prefixes.tokenizer.eos_text


def _followers(messages: tuple[dict[str, Any], ...], turn: int) -> list[dict[str, Any]]:
    """The message after a turn. After the last turn, the messages that inference may send next, the
    most likely first."""
    if turn + 1 < len(messages) and messages[turn + 1]["role"] != "assistant":
        return [messages[turn + 1]]
    calls = messages[turn].get("tool_calls")
    if not calls:
        return [_QUESTION]
    result = {"role": "tool", "content": "?", "name": calls[0]["function"]["name"]}
    if "id" in calls[0]:
        result["tool_call_id"] = calls[0]["id"]
    return [result, _QUESTION]


def _leading_special(text: str, prefixes: Prefixes) -> str | None:
    """The white space and the special token at the beginning of a text."""
    start = len(text) - len(text.lstrip())
    found = [s for s in prefixes.tokenizer.special_texts if text.startswith(s, start)]
    return text[:start] + max(found, key=len) if found else None
