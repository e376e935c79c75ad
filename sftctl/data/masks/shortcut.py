"""A faster way to make the texts to train on, if a template doesn't look at message contents.

Such a template writes the same text around the contents of all conversations with the same roles.
That text, the layout, is learned once, by finding the turns of a stand-in conversation. For every
other conversation the contents are put into the layout. The result is used only if it equals the
text that the template renders.
"""

from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import NamedTuple

from sftctl.config.schema import TrainOn
from sftctl.data.conversations.conversation import Conversation
from sftctl.data.ledger import BadRow
from sftctl.data.masks.render import render
from sftctl.data.masks.turns import TrainingText, training_texts
from sftctl.model.tokenizer.encoders import Span
from sftctl.model.tokenizer.tokenizer import ChatTokenizer

_LayoutKey = tuple[tuple[tuple[str, bool], ...], frozenset[int]]
"""(role, whether the content is empty) of every message, and the messages not to be trained."""


class _Edge(NamedTuple):
    """Where a target begins or ends: `offset` characters into the fixed text number `text`."""

    text: int
    offset: int


class _Target(NamedTuple):
    start: _Edge
    end: _Edge


@dataclass(frozen=True, slots=True)
class _Layout:
    """What a template writes before, between and after N contents: N+1 fixed texts."""

    fixed: list[str]
    is_trimmed: bool  # True: the template strips white space around contents
    targets: list[_Target]
    may_be_apart: bool

    def filled(self, contents: list[str]) -> TrainingText:
        """The text with these N contents."""
        parts = [self.fixed[0]]
        for content, after in zip(contents, self.fixed[1:], strict=True):
            parts += [content.strip() if self.is_trimmed else content, after]
        starts = list(accumulate(map(len, parts), initial=0))[::2]  # of the fixed texts
        spans = [
            (starts[start.text] + start.offset, starts[end.text] + end.offset)
            for start, end in self.targets
        ]
        return TrainingText("".join(parts), spans, self.may_be_apart)


@dataclass(slots=True)
class Renderer:
    """Renders conversations to texts to train on, and remembers the layouts that it learns."""

    tokenizer: ChatTokenizer
    train_on: TrainOn
    max_layouts: int = 4096  # kept in memory
    _layouts: dict[_LayoutKey, _Layout | None] = field(default_factory=dict)

    def training_texts(self, row: Conversation) -> list[TrainingText]:
        """What `turns.training_texts` returns or raises for `row`, usually after one rendering."""
        key = self._key(row)
        layout = None if key is None else self._layout(key, row)
        if layout is not None:
            filled = layout.filled([m["content"] for m in row.messages if m["content"]])
            if filled.text == render(row, self.tokenizer):
                return [filled]
        return training_texts(row, self.tokenizer, self.train_on)

    def _key(self, row: Conversation) -> _LayoutKey | None:
        """What decides the fixed texts and the targets; None if they might depend on contents."""
        is_special = row.tools or row.weights or row.shape == "text"
        if not self.tokenizer.is_content_blind or is_special:
            return None
        for message in row.messages:
            content = message["content"]
            if len(message) > 2 or (content and not content.strip()):
                return None
        roles = tuple((message["role"], not message["content"]) for message in row.messages)
        return roles, row.untrained

    def _layout(self, key: _LayoutKey, row: Conversation) -> _Layout | None:
        """The layout for `row`, learned on first use; None if it has none."""
        if key not in self._layouts:
            if len(self._layouts) >= self.max_layouts:
                self._layouts.clear()
            self._layouts[key] = self._learn_layout(row)
        return self._layouts[key]

    def _learn_layout(self, row: Conversation) -> _Layout | None:
        """Learn from a conversation with the roles of `row` and unique marks as contents."""
        marks = {i: f"\ue000{i}\ue001" for i, m in enumerate(row.messages) if m["content"]}
        messages = tuple(
            message | {"content": f" \n{marks[i]} \n" if i in marks else ""}
            for i, message in enumerate(row.messages)
        )
        stand_in = replace(row, messages=messages)
        try:
            found = training_texts(stand_in, self.tokenizer, self.train_on)
        except BadRow:
            return None  # each row is then refused separately, with its own file and line
        if len(found) != 1:
            return None
        for is_trimmed in (False, True):
            contents = [mark if is_trimmed else f" \n{mark} \n" for mark in marks.values()]
            layout = _layout_around(contents, found[0], is_trimmed)
            if layout is not None:
                return layout
        return None


def _layout_around(contents: list[str], found: TrainingText, is_trimmed: bool) -> _Layout | None:
    """The text around `contents`, as a layout; None unless they occur in order."""
    text, position = found.text, 0
    places: list[Span] = []  # of the fixed texts
    for content in contents:
        start = text.find(content, position)
        if start < 0:
            return None
        places.append((position, start))
        position = start + len(content)
    places.append((position, len(text)))
    targets = []
    for span in found.targets:
        first, last = (_edge(position, places) for position in span)
        if first is None or last is None:
            return None
        targets.append(_Target(first, last))
    fixed = [text[start:end] for start, end in places]
    return _Layout(fixed, is_trimmed, targets, found.may_be_apart)


def _edge(position: int, places: list[Span]) -> _Edge | None:
    """The fixed text that holds a position; None if it is inside a content."""
    for index, (start, end) in enumerate(places):
        if start <= position <= end:
            return _Edge(index, position - start)
    return None
