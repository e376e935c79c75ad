"""The token that ends an assistant turn. The model must learn to write this token, to stop."""

import re
from contextlib import suppress
from functools import cache
from os.path import commonprefix
from typing import Any

from sftctl.data.ledger import BadRow
from sftctl.data.masks.render import Prefixes

_MARK = "\ue000sftctl\ue001"  # a content that does not occur in real data
_QUESTION = {"role": "user", "content": "?"}


def with_end(prefixes: Prefixes, turn: int, written: str) -> str:
    """The rendered text of a turn, up to and including its end token. `written`: the complete text.

    White space after the end token is left out, because generation stops at the end token. Some
    templates write no end token. Then the special token at the start of the next message is added.
    If there is none either, the end-of-sequence token is added. Raises BadRow if an end-of-sequence
    token comes before the content.
    """
    special, eos = prefixes.tokenizer.special_texts, prefixes.tokenizer.eos_text
    stripped = written.rstrip()
    begin, start = _content_place(prefixes, turn, written)
    if eos and eos in written[:begin]:
        raise BadRow(
            "mask_not_exact",
            f"{prefixes.row.source}: message {turn + 1}: the chat template writes {eos} before the "
            "content of this turn, where a model would stop",
            "split the content and the tool calls into two messages",
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
    """Where the content of a turn begins and ends in `written`, without white space around it.

    The content may be empty, or may occur twice in the text. Then the turn is rendered again with a
    mark as its content. This shows the text that the template writes after the content.
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
    """Which of `ends` is the end of a turn when another message follows. None: all of the turn.

    `ends` are the positions after special tokens. Some templates write more after the last message
    than after earlier messages: an end-of-sequence token (Phi 3), or the next header (Command A).
    So one more message is rendered, and the common text shows the end.
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
    """The white space and the special token that the template writes after a turn. If it writes no
    special token: the end-of-sequence token."""
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
    """The messages that may follow a turn, the most likely first. The row's next message is the
    only one, unless it is missing or is another assistant turn."""
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
    """The white space and the special token at the start of a text; None without special token."""
    start = len(text) - len(text.lstrip())
    found = [s for s in prefixes.tokenizer.special_texts if text.startswith(s, start)]
    return text[:start] + max(found, key=len) if found else None
