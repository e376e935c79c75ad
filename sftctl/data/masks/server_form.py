"""Bring tool calls into the form that the chat template needs, as inference servers do.

Some templates need the arguments of a call as JSON text, not as an object. Some templates need an
id for every call. To find the form, the row is rendered with one form after another. The first form
that the template accepts, and whose arguments are written as JSON, is used.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any

from sftctl.data.conversations.conversation import Conversation
from sftctl.data.ledger import BadRow
from sftctl.data.masks.render import render
from sftctl.model.tokenizer.tokenizer import ChatTokenizer

_ID_LENGTH = 9  # of Mistral's call ids
_ID_LETTERS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_SEPARATORS = ((", ", ": "), (",", ":"), (",", ": "))

Message = dict[str, Any]


def as_servers_send(row: Conversation, tokenizer: ChatTokenizer) -> Conversation:
    """The conversation with its tool calls in the form that the chat template needs.

    Arguments are objects, or JSON text if the template can't write objects as JSON. Call ids are
    added if the template refuses calls without ids.
    """
    if not any(message.get("tool_calls") for message in row.messages):
        return row
    accepted: list[Conversation] = []
    for with_ids, as_text in product((False, True), repeat=2):
        form = _with_ids(row) if with_ids else row
        form = _with_arguments(form, _json_text) if as_text else form
        try:
            text = render(form, tokenizer)
        except BadRow:
            continue
        written = [_is_written(arguments, text) for arguments in _arguments(form)]
        if all(written):
            return form
        accepted.append(form)
    return accepted[0] if accepted else row


def _with_arguments(row: Conversation, change: Callable[[Any], Any]) -> Conversation:
    def changed(call: dict[str, Any]) -> dict[str, Any]:
        function = call["function"]
        return call | {"function": function | {"arguments": change(function["arguments"])}}

    messages = (
        m | {"tool_calls": [changed(call) for call in m["tool_calls"]]} if "tool_calls" in m else m
        for m in row.messages
    )
    return replace(row, messages=tuple(messages))


def _json_text(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _arguments(row: Conversation) -> Iterator[Any]:
    for message in row.messages:
        for call in message.get("tool_calls", ()):
            yield call["function"]["arguments"]


def _is_written(arguments: Any, text: str) -> bool:
    """Whether a text has the arguments, as JSON or one by one. False if the template wrote them as
    Python's repr."""
    if isinstance(arguments, str):
        return arguments in text
    if any(spelling in text for spelling in _spellings(arguments)):
        return True
    if repr(arguments) in text:
        return False
    return all(any(s in text for s in _leaf_spellings(leaf)) for leaf in _leaves(arguments))


def _spellings(value: Any) -> Iterator[str]:
    """A value as JSON, in all the ways in which templates write JSON."""
    for separators in _SEPARATORS:
        for is_ascii in (False, True):
            yield json.dumps(value, ensure_ascii=is_ascii, separators=separators)
            yield json.dumps(value, ensure_ascii=is_ascii, separators=separators, sort_keys=True)


def _leaves(value: Any) -> Iterator[Any]:
    """The keys of an object, and its values that are not objects or lists."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    else:
        yield value


def _leaf_spellings(leaf: Any) -> Iterator[str]:
    if isinstance(leaf, str):
        yield leaf
        yield leaf.strip()
    for is_ascii in (False, True):
        yield json.dumps(leaf, ensure_ascii=is_ascii).strip('"')
    if isinstance(leaf, bool) or leaf is None:
        yield str(leaf)


def _with_ids(row: Conversation) -> Conversation:
    """The conversation with an id of nine letters or digits for each call and each tool result.

    Mistral's templates need such ids. An id of this form is kept. Other ids are replaced by a hash
    of the conversation and the position of the call. A tool result without an id gets the id of the
    first call that has no result yet.
    """
    messages: list[Message] = []
    new_ids: dict[str, str] = {}  # id in the row -> new id
    waiting: list[str] = []  # ids of calls that have no result yet
    for index, message in enumerate(row.messages):
        if calls := message.get("tool_calls"):
            ids = [_fitting_id(row, index, i, call.get("id")) for i, call in enumerate(calls)]
            pairs = list(zip(calls, ids, strict=True))
            new_ids |= {call["id"]: made for call, made in pairs if isinstance(call.get("id"), str)}
            waiting = list(ids)
            message = message | {"tool_calls": [call | {"id": made} for call, made in pairs]}
        elif message["role"] == "tool":
            old = message.get("tool_call_id")
            made = new_ids.get(old) if old is not None else None
            made = made or (waiting[0] if waiting else _fitting_id(row, index, 0, old))
            if made in waiting:
                waiting.remove(made)
            message = message | {"tool_call_id": made}
        messages.append(message)
    return replace(row, messages=tuple(messages))


def _fitting_id(row: Conversation, message: int, call: int, given: object) -> str:
    if isinstance(given, str) and len(given) == _ID_LENGTH and given.isalnum():
        return given
    content = f"{row.digest}/{message}/{call}".encode()
    number = int.from_bytes(hashlib.sha256(content).digest())
    letters = ""
    for _ in range(_ID_LENGTH):
        number, letter = divmod(number, len(_ID_LETTERS))
        letters += _ID_LETTERS[letter]
    return letters
