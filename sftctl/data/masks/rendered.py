"""Refuse a row if the chat template leaves out a message or its reasoning."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from sftctl.data.conversations.conversation import Conversation
from sftctl.data.ledger import BadRow
from sftctl.data.masks.prefixes import Prefixes
from sftctl.data.masks.render import render
from sftctl.data.masks.thinking import thought_of

_OPEN, _CLOSE = "\ue000", "\ue001"


def require_rendered(prefixes: Prefixes, turns: Sequence[int]) -> None:
    """Raise BadRow if no text changes when the content of a message changes.

    The texts are the full one and the prompts for `turns`. Finding a content in a text proves
    nothing, because another message may have the same content. So the conversation is rendered once
    more with a mark in each content. A message whose mark is missing is then tested alone.
    """
    row = prefixes.row
    marks = {i: f"{_OPEN}{i}{_CLOSE}" for i, m in enumerate(row.messages) if m["content"].strip()}
    if not marks or not _must_look(prefixes, len(marks)):
        return
    marked = tuple(
        message | {"content": message["content"].rstrip() + marks[i]} if i in marks else message
        for i, message in enumerate(row.messages)
    )
    try:
        text = render(replace(row, messages=marked), prefixes.tokenizer)
    except BadRow:
        text = ""
    for index, mark in marks.items():
        if mark not in text and not _matters(prefixes, index, turns):
            raise BadRow(
                "message_not_rendered",
                f"{row.source}: message {index + 1}: the chat template leaves out its content",
                "remove it from the row, or use a chat template that writes it",
            )


def _must_look(prefixes: Prefixes, num_contents: int) -> bool:
    """Whether to test; False: the template is known to write all contents of these roles."""
    row, tokenizer = prefixes.row, prefixes.tokenizer
    if tokenizer.content_use is None or tokenizer.content_use.constants:
        return True
    key = tuple((m["role"], not m["content"].strip(), *sorted(m)) for m in row.messages)
    if key in tokenizer.complete_roles:
        return False
    stand_in = tuple(
        m | {"content": f"{_OPEN}{i}{_CLOSE}" if m["content"].strip() else m["content"]}
        for i, m in enumerate(row.messages)
    )
    try:
        text = render(replace(row, messages=stand_in), tokenizer)
    except BadRow:
        return True
    if text.count(_OPEN) >= num_contents and all(
        m["content"] in text for m in stand_in if m["content"].strip()
    ):
        tokenizer.complete_roles.add(key)
        return False
    return True


def _matters(prefixes: Prefixes, index: int, turns: Sequence[int]) -> bool:
    """Whether a changed content changes some text, or makes the template refuse it."""
    row = prefixes.row
    content = row.messages[index]["content"]
    mark = f"{_OPEN}{_CLOSE}"
    for other in (mark, content + mark, mark + content):
        messages = (
            *row.messages[:index],
            row.messages[index] | {"content": other},
            *row.messages[index + 1 :],
        )
        changed = Prefixes(replace(row, messages=messages), prefixes.tokenizer, "")
        try:
            if any(a != b for a, b in _texts(prefixes, changed, index, turns)):
                return True
        except BadRow:
            return True
    return False


def _texts(
    one: Prefixes, other: Prefixes, index: int, turns: Sequence[int]
) -> Iterator[tuple[str, str]]:
    """The full text and the prompts after message `index`, of both."""
    yield one.full_text, other.render(other.row.messages)
    for turn in turns:
        if turn > index:
            yield one.prompt(turn), other.prompt(turn)


def require_thoughts(row: Conversation, texts: dict[int, str]) -> None:
    """Raise BadRow if the reasoning of a message is not in its text, `texts[message]`."""
    for index, text in texts.items():
        thought = thought_of(row.messages[index])
        if thought is None:
            continue
        # The answer may repeat the thought, so the text must have it once more than the answer.
        if text.count(thought.text) <= thought.answer.count(thought.text):
            raise BadRow(
                "message_not_rendered",
                f"{row.source}: message {index + 1}: the chat template leaves out its reasoning",
                "remove it from the row, or use a chat template or an option of it "
                "(--template-option) that writes it",
            )
