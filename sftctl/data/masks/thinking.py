"""Thinking blocks: the block that a prompt opens, and the reasoning of a message."""

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

from sftctl.data.conversations.reasoning import TAGS
from sftctl.errors import SftctlError
from sftctl.model.tokenizer.encoders import Span
from sftctl.model.tokenizer.template_options import options_of
from sftctl.model.tokenizer.tokenizer import ChatTokenizer

_QUESTION = {"role": "user", "content": "?"}

THINKING_TAGS = frozenset({*TAGS, *TAGS.values()})
"""All tags that open or close a thinking block."""

_OPENERS, _CLOSERS = ("|".join(map(re.escape, tags)) for tags in (TAGS, TAGS.values()))
_EMPTY = re.compile("|".join(rf"{re.escape(o)}\s*{re.escape(c)}" for o, c in TAGS.items()))
_OPENED = re.compile(rf"({_OPENERS})\s*(?:(?:{_CLOSERS})\s*)?\Z")


@dataclass(frozen=True, slots=True)
class OpenedBlock:
    """A thinking block at the end of a prompt. It is open, or closed without a thought."""

    text: str
    opener: str

    @property
    def closer(self) -> str:
        """The tag that closes the block."""
        return TAGS[self.opener]

    @property
    def is_open(self) -> bool:
        """True: the model has to write the thought and the closing tag."""
        return self.closer not in self.text

    def after_empty(self, written: str) -> str | None:
        """The text of a turn without the empty block at its beginning, which repeats this closed
        block. (DeepSeek V3.2 repeats only the closing tag.)

        A turn that begins with no block is returned as it is. None: the white space after the block
        of the turn differs from the prompt's, or another block follows, so it is unclear what the
        model has to write.
        """
        empty = re.match(rf"({re.escape(self.opener)}\s*)?{re.escape(self.closer)}", written)
        if empty is None:
            return written
        after, gap = written[empty.end() :], self.text.partition(self.closer)[2]
        is_unclear = not after.startswith(gap) or after.lstrip().startswith(self.opener)
        return None if is_unclear else after.removeprefix(gap)


def opened_block(prompt: str) -> OpenedBlock | None:
    """The thinking block with which a prompt ends."""
    found = _OPENED.search(prompt)
    return None if found is None else OpenedBlock(found[0], found[1])


def is_thinking_block(text: str) -> bool:
    """Whether `text` is white space, or an empty thinking block."""
    return not text.strip() or _OPENED.fullmatch(text.lstrip()) is not None


@dataclass(frozen=True, slots=True)
class Thought:
    """The reasoning of an assistant message, and the answer that follows it."""

    text: str
    answer: str
    close: str | None  # the text between them in the content; None: they are separate fields
    opener: str | None = None  # the tag of its block in the content

    def is_closed_in(self, text: str) -> bool:
        """Whether the reasoning's closing tag is in a text. Closing tags in the answer don't
        count."""
        closer = "" if self.opener is None else TAGS[self.opener]
        return bool(closer) and text.count(closer) > self.answer.count(closer)

    def may_be_in(self, block: OpenedBlock) -> bool:
        """Whether a template that writes `block` may read this thought as reasoning."""
        return self.opener in (None, block.opener)


def thought_of(message: dict[str, Any]) -> Thought | None:
    """The reasoning in `reasoning_content`, or in a block at the beginning of the content."""
    content: str = message["content"]
    reasoning = message.get("reasoning_content")
    if reasoning and reasoning.strip():
        return Thought(reasoning.strip(), content, None)
    for opener, closer in TAGS.items():
        before, found, answer = content.partition(closer)
        lead, _, thought = before.rpartition(opener)
        if found and thought.strip() and not lead.strip():
            blank = thought[len(thought.rstrip()) :]
            gap = answer[: len(answer) - len(answer.lstrip())]
            return Thought(thought.strip(), answer, blank + closer + gap, opener)
    return None


def open_thought(content: str) -> Thought | None:
    """The reasoning in a block that begins a content and does not end: a generation was cut off."""
    for opener, closer in TAGS.items():
        text = content.lstrip()
        if text.startswith(opener) and closer not in text:
            return Thought(text.removeprefix(opener).strip(), "", None, opener)
    return None


def has_another_block(written: str, message: dict[str, Any]) -> bool:
    """Whether a template adds a thinking block to the thinking block of the message."""
    content: str = message["content"]
    own = thought_of(message) or open_thought(content) or _empty_thought(content)
    if own is None:
        return False
    if own.opener is not None:
        begins = content.lstrip().startswith(own.opener)
        tag = own.opener if begins else TAGS[own.opener]
        return written.count(tag) > content.count(tag)
    empty = _EMPTY.search(written)
    return empty is not None and empty.end() <= written.find(own.text)


def after_block(content: str) -> str:
    """The content without the thinking block at its beginning, even if the block is empty."""
    for opener, closer in TAGS.items():
        before, found, answer = content.partition(closer)
        if found and not before.rpartition(opener)[0].strip():
            return answer
    return content


def reasoning_span(text: str, thought: str) -> Span | None:
    """The place of this reasoning in the text of a turn, with white space around it; None if it is
    not there. An opening tag must come before the reasoning, unless the prompt has opened the
    block.
    """
    first = min((text.find(o) + len(o) for o in TAGS if o in text), default=0)
    begin = text.find(thought, first)
    if begin < 0:
        return None
    end = begin + len(thought)
    before, after = text[first:begin], text[end:]
    blank = len(after) - len(after.lstrip())
    return begin - (len(before) - len(before.rstrip())), end + blank


def continued(block: OpenedBlock, written: str, message: dict[str, Any]) -> str | None:
    """The text that the model has to write after a prompt that ends with an open `block`.

    `written` is the template's text of the turn, which does not begin with that block. None: the
    message has no reasoning, or `written` is not its answer.
    """
    rest = written.lstrip()
    if rest.startswith(block.opener):
        return rest.removeprefix(block.opener).lstrip()
    thought = thought_of(message) or _empty_thought(message["content"])
    if thought is None:
        return None
    if rest.startswith(block.closer):
        after = rest.removeprefix(block.closer).lstrip()
        is_answer = after.startswith(thought.answer.strip()) and not thought.is_closed_in(after)
        return thought.text + rest if is_answer else None
    after = rest.removeprefix(thought.text).lstrip()
    if thought.text and after != rest and after.startswith(block.closer):
        return rest
    if thought.is_closed_in(rest) or not rest.startswith(thought.answer.strip()):
        return None
    new_line = "\n" if block.text.endswith("\n") else ""
    if not thought.text:
        return (thought.close or "").removeprefix(new_line) + rest
    close = f"\n{block.closer}\n\n" if new_line else block.closer
    return thought.text + (thought.close or close) + rest


def _empty_thought(content: str) -> Thought | None:
    """The empty block at the beginning of a content; its opening tag may be missing."""
    for opener, closer in TAGS.items():
        before, found, answer = content.partition(closer)
        if found and before.strip() in ("", opener):
            blank = before.partition(opener)[2] if opener in before else before
            gap = answer[: len(answer) - len(answer.lstrip())]
            return Thought("", answer, blank + closer + gap, opener)
    return None


def option_for(
    tokenizer: ChatTokenizer, is_wanted: Callable[[OpenedBlock | None], bool]
) -> str | None:
    """The template option, `name=value`, for which a prompt ends with the wanted block, or without
    a block. None: there is no such option.
    """
    found = _blocks(tokenizer)
    return next((option for option, block in found if is_wanted(block)), None)


@lru_cache(maxsize=8)
def _blocks(tokenizer: ChatTokenizer) -> list[tuple[str, OpenedBlock | None]]:
    """The block at the end of a prompt, by the option that is set."""
    found = []
    read = {name for text in tokenizer.templates.values() for name in options_of(text) or ()}
    names = sorted(name for name in read if "think" in name or "reason" in name)
    for name, value in product(names, (True, False)):
        with suppress(SftctlError):
            prompt = tokenizer.with_options({name: value}).render([_QUESTION], None, True)
            found.append((f"{name}={str(value).lower()}", opened_block(prompt)))
    return found
