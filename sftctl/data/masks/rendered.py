"""Refuse a row if the chat template leaves out a message or its reasoning."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from sftctl.data.conversations.conversation import Conversation
from sftctl.data.ledger import BadRow
from sftctl.data.masks.render import Prefixes, render
from sftctl.data.masks.thinking import after_block, thought_of
from sftctl.jsonio import dump_text
from sftctl.model.tokenizer.encoders import Span

_OPEN, _CLOSE = "\ue000", "\ue001"
_LINE = re.compile(r"[^\n]+")
_WORD = re.compile(r"\w+|[^\w\s]+")
_MOST_PARTS = 16  # so many parts of a content are removed, one at a time


def require_rendered(prefixes: Prefixes, turns: Sequence[int]) -> None:
    """Raise BadRow if the template leaves out the content of a message.

    Two messages may have the same content. So a content that is found in the text proves nothing.
    Instead, the conversation is rendered again with a mark in each content. If a mark is missing,
    only this message is changed, and the full text and the prompts of `turns` are rendered. If they
    stay the same, the template leaves out the content.
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
    for index in _doubtful(row, prefixes.full_text):
        _require_no_part_lost(prefixes, index, turns)


def _doubtful(row: Conversation, text: str) -> list[int]:
    """The messages whose content is not in the text unchanged. Thinking blocks are ignored."""
    contents = [after_block(m["content"]).strip() for m in row.messages]
    same = Counter(contents)
    found = {
        content: max(text.count(content), text.count(dump_text(content)[1:-1])) >= number
        for content, number in same.items()
        if content
    }
    return [index for index, content in enumerate(contents) if not found.get(content, True)]


def _require_no_part_lost(prefixes: Prefixes, index: int, turns: Sequence[int]) -> None:
    """Raise BadRow if the template leaves out a part of a content.

    Parts of the content are removed, one at a time, and the conversation is rendered again. If no
    text changes, the template leaves out this part. The same is tried with upper case and lower
    case exchanged.
    """
    content = prefixes.row.messages[index]["content"]
    start = len(content) - len(after_block(content))
    lines = [line for line in _LINE.finditer(content, start) if line[0] not in prefixes.full_text]
    spans = [w.span() for line in lines for w in _WORD.finditer(content, *line.span())]
    everything = [w.span() for w in _WORD.finditer(content, start)]
    chosen = {*_some(spans), *_some(everything, 3)}
    others = [content[:begin] + content[end:] for begin, end in sorted(chosen)]
    if content[start:].swapcase() != content[start:]:
        others.append(content[:start] + content[start:].swapcase())
    for other in others:
        if not _changes(prefixes, index, other, turns):
            raise BadRow(
                "message_not_rendered",
                f"{prefixes.row.source}: message {index + 1}: the chat template leaves out a part "
                "of its content",
                "remove that part from the row, or use a chat template that writes it",
            )


def _some(spans: list[Span], most: int = _MOST_PARTS) -> list[Span]:
    """At most `most` of the spans, evenly spaced, with the first and the last span."""
    if len(spans) <= most:
        return spans
    return [spans[i * (len(spans) - 1) // (most - 1)] for i in range(most)]


def _must_look(prefixes: Prefixes, num_contents: int) -> bool:
    """Whether a test is needed. False: the template is known to write contents of these roles."""
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
    """Whether the template uses the content of a message: three changed contents are tried."""
    row = prefixes.row
    content = row.messages[index]["content"]
    mark = f"{_OPEN}{_CLOSE}"
    return any(
        _changes(prefixes, index, other, turns) for other in (mark, content + mark, mark + content)
    )


def _changes(prefixes: Prefixes, index: int, content: str, turns: Sequence[int]) -> bool:
    """Whether a text changes if message `index` has `content`. True if the row is refused then."""
    row = prefixes.row
    messages = (
        *row.messages[:index],
        row.messages[index] | {"content": content},
        *row.messages[index + 1 :],
    )
    changed = Prefixes(replace(row, messages=messages), prefixes.tokenizer, "")
    try:
        return any(a != b for a, b in _texts(prefixes, changed, index, turns))
    except BadRow:
        return True


def _texts(
    one: Prefixes, other: Prefixes, index: int, turns: Sequence[int]
) -> Iterator[tuple[str, str]]:
    """Pairs of corresponding texts of two conversations that differ in message `index`.

    These are the full texts, the texts up to this message, and the prompts after this message.
    """
    yield one.full_text, other.render(other.row.messages)
    if index in turns and index + 1 < len(one.row.messages):
        yield one.through(index), other.through(index)
    for turn in turns:
        if turn > index:
            yield one.prompt(turn), other.prompt(turn)


def require_thoughts(row: Conversation, texts: dict[int, str]) -> None:
    """Raise BadRow if the reasoning of a message is not in its text, `texts[message]`."""
    for index, text in texts.items():
        thought = thought_of(row.messages[index])
        if thought is None:
            continue
        # The answer may repeat the thought. So the text must contain the thought more often than
        # the answer.
        if text.count(thought.text) <= thought.answer.count(thought.text):
            raise BadRow(
                "message_not_rendered",
                f"{row.source}: message {index + 1}: the chat template leaves out its reasoning",
                "remove the reasoning, or use a template or --template-option that writes it",
            )
