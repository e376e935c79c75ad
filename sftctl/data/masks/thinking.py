"""Thinking blocks: blocks at the end of a prompt, and blocks at the start of a message."""

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

_ALL_OPENERS = tuple(TAGS)
_OPENERS, _CLOSERS = ("|".join(map(re.escape, tags)) for tags in (TAGS, TAGS.values()))
_EMPTY = re.compile("|".join(rf"{re.escape(o)}\s*{re.escape(c)}" for o, c in TAGS.items()))
_OPENED = re.compile(rf"({_OPENERS})\s*(?:(?:{_CLOSERS})\s*)?\Z")


@dataclass(frozen=True, slots=True)
class OpenedBlock:
    """A thinking block at the end of a prompt. The block is open, or it is closed and empty."""

    text: str  # the block, with white space
    opener: str  # the opening tag

    @property
    def closer(self) -> str:
        """The tag that closes the block."""
        return TAGS[self.opener]

    @property
    def is_open(self) -> bool:
        """True: the block is not closed, so the model writes the thought and the closing tag."""
        return self.closer not in self.text

    def after_empty(self, written: str) -> str | None:
        """The text of a turn without an empty block at its start, which repeats this block.

        `written` is the rendered text of the turn. A text that does not begin with an empty block
        is returned unchanged. (DeepSeek V3.2 repeats only the closing tag.) None if it is unclear
        what the model has to write. Then another block follows, or the white space after the block
        differs.
        """
        empty = re.match(rf"({re.escape(self.opener)}\s*)?{re.escape(self.closer)}", written)
        if empty is None:
            return written
        after, gap = written[empty.end() :], self.text.partition(self.closer)[2]
        is_unclear = not after.startswith(gap) or after.lstrip().startswith(self.opener)
        return None if is_unclear else after.removeprefix(gap)


def opened_block(prompt: str) -> OpenedBlock | None:
    """The thinking block at the end of a prompt. None if the prompt does not end with a block."""
    found = _OPENED.search(prompt)
    return None if found is None else OpenedBlock(found[0], found[1])


def is_thinking_block(text: str) -> bool:
    """Whether `text` is only white space, or an empty or open thinking block."""
    return not text.strip() or _OPENED.fullmatch(text.lstrip()) is not None


@dataclass(frozen=True, slots=True)
class Thought:
    """The reasoning of an assistant message, and the answer that follows it."""

    text: str
    answer: str
    close: str | None  # the text between reasoning and answer; None: they are separate fields
    opener: str | None = None  # the opening tag; None: the reasoning is in a separate field

    def is_closed_in(self, text: str) -> bool:
        """Whether `text` closes the reasoning. Closing tags inside the answer are not counted."""
        closer = "" if self.opener is None else TAGS[self.opener]
        return bool(closer) and text.count(closer) > self.answer.count(closer)

    def may_be_in(self, block: OpenedBlock) -> bool:
        """Whether this reasoning can be in `block`: it has the same tags, or no tags."""
        return self.opener in (None, block.opener)


def thought_of(message: dict[str, Any]) -> Thought | None:
    """The reasoning in `reasoning_content`, or in a block at the start of the content. None if a
    message has no reasoning."""
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
    """The reasoning in a block that a content opens and never closes. None: no such block.

    The usual cause is a generation that was cut off.
    """
    text = content.lstrip()
    if not text.startswith(_ALL_OPENERS):
        return None
    for opener, closer in TAGS.items():
        if text.startswith(opener) and closer not in text:
            return Thought(text.removeprefix(opener).strip(), "", None, opener)
    return None


def has_another_block(written: str, message: dict[str, Any]) -> bool:
    """Whether the template wrote a thinking block in addition to the block of the message."""
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


def unopened(content: str) -> str | None:
    """The first closing tag in a content that follows a text without an opening tag. None: there is
    no such tag. The text is reasoning whose opening tag is missing, or it mentions the tag."""
    for opener, closer in TAGS.items():
        before, found, _ = content.partition(closer)
        if found and before.strip() and opener not in before:
            return closer
    return None


def after_block(content: str) -> str:
    """The content without the thinking block at its start. The block may be empty."""
    for opener, closer in TAGS.items():
        before, found, answer = content.partition(closer)
        if found and not before.rpartition(opener)[0].strip():
            return answer
    return content


def reasoning_span(text: str, thought: str) -> Span | None:
    """The span of `thought` in the text of a turn, with the white space around it.

    The search begins after the first opening tag, if there is one. None if `thought` is not found.
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
    """The text that the model has to write after a prompt that ends with the open `block`.

    `written` is the rendered text of the turn, which does not repeat this block. None if the
    message has no reasoning, or if `written` does not match the message.
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
    """The empty block at the start of a content; the opening tag may be missing. None: no block."""
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
    """The first template option, as `name=value`, whose prompt ends with a wanted block.

    `is_wanted` decides; its argument is None if the prompt has no block. None: no option is wanted.
    """
    found = _blocks(tokenizer)
    return next((option for option, block in found if is_wanted(block)), None)


@lru_cache(maxsize=8)
def _blocks(tokenizer: ChatTokenizer) -> list[tuple[str, OpenedBlock | None]]:
    """(option, block at the end of the prompt with this option) for all options about thinking."""
    found = []
    read = {name for text in tokenizer.templates.values() for name in options_of(text) or ()}
    names = sorted(name for name in read if "think" in name or "reason" in name)
    for name, value in product(names, (True, False)):
        with suppress(SftctlError):
            prompt = tokenizer.with_options({name: value}).render([_QUESTION], None, True)
            found.append((f"{name}={str(value).lower()}", opened_block(prompt)))
    return found
