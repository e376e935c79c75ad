"""Renderings without rendering every turn, where a template is proved blind to contents.

Such a template writes the same text around the contents of all conversations with the same roles.
It is found out once, on a stand-in that says other words, with all of `turns`' care. Then the text
of a conversation is put together, and used only if it equals the text that the template makes.
"""

from dataclasses import dataclass, field, replace
from itertools import accumulate

from sftctl.config.schema import TrainOn
from sftctl.data.conversations.conversation import Conversation
from sftctl.data.ledger import BadRow
from sftctl.data.masks.render import render
from sftctl.data.masks.turns import Rendering, renderings
from sftctl.model.tokenizer.encoders import Span
from sftctl.model.tokenizer.tokenizer import ChatTokenizer

_MOST_KNOWN = 4096
_Key = tuple[tuple[tuple[str, bool], ...], frozenset[int]]


@dataclass(frozen=True, slots=True)
class _Skeleton:
    """The texts between contents, and each edge of a target: (in which of them, where in it)."""

    between: list[str]
    is_trimmed: bool
    targets: list[tuple[tuple[int, int], tuple[int, int]]]

    def filled(self, contents: list[str]) -> Rendering:
        """With the contents of a conversation."""
        parts = [self.between[0]]
        for content, behind in zip(contents, self.between[1:], strict=True):
            parts += [content.strip() if self.is_trimmed else content, behind]
        starts = list(accumulate(map(len, parts), initial=0))[::2]
        spans = [(starts[a] + i, starts[b] + j) for (a, i), (b, j) in self.targets]
        return Rendering("".join(parts), spans)


@dataclass(slots=True)
class Renderer:
    """Renders conversations for training, and remembers the skeletons that it has found."""

    tokenizer: ChatTokenizer
    train_on: TrainOn
    _known: dict[_Key, _Skeleton | None] = field(default_factory=dict)

    def renderings(self, row: Conversation) -> list[Rendering]:
        """The texts that train every target turn of `row` once; BadRow where there is none."""
        key = self._key(row)
        if key is None:
            return renderings(row, self.tokenizer, self.train_on)
        if key not in self._known:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[key] = self._skeleton(row)
        skeleton = self._known[key]
        if skeleton is not None:
            contents = [m["content"] for m in row.messages if m["content"]]
            filled = skeleton.filled(contents)
            if filled.text == render(row, self.tokenizer):
                return [filled]
        return renderings(row, self.tokenizer, self.train_on)

    def _key(self, row: Conversation) -> _Key | None:
        """What decides the text around contents; None where more might."""
        if not self.tokenizer.is_content_blind or row.tools:
            return None
        for message in row.messages:
            content = message["content"]
            if len(message) > 2 or (content and not content.strip()):
                return None
        roles = tuple((message["role"], not message["content"]) for message in row.messages)
        return roles, row.untrained

    def _skeleton(self, row: Conversation) -> _Skeleton | None:
        """By a conversation of the same roles that says nothing but numbers."""
        marks = {i: f"\ue000{i}\ue001" for i, m in enumerate(row.messages) if m["content"]}
        messages = tuple(
            message | {"content": f" \n{marks[i]} \n" if i in marks else ""}
            for i, message in enumerate(row.messages)
        )
        stand_in = replace(row, messages=messages)
        try:
            found = renderings(stand_in, self.tokenizer, self.train_on)
        except BadRow:
            return None  # refused again, with its own line, for each such row
        if len(found) != 1:
            return None
        [rendering] = found
        for is_trimmed in (False, True):
            said = [mark if is_trimmed else f" \n{mark} \n" for mark in marks.values()]
            skeleton = _cut(rendering, said, is_trimmed)
            if skeleton is not None:
                return skeleton
        return None


def _cut(rendering: Rendering, contents: list[str], is_trimmed: bool) -> _Skeleton | None:
    """The skeleton left when `contents` are cut out; None if not each is there once, in order."""
    text, between, position = rendering.text, [], 0
    places: list[Span] = []
    for content in contents:
        start = text.find(content, position)
        if start < 0 or text.count(content) != 1:
            return None
        between.append(text[position:start])
        places.append((position, start))
        position = start + len(content)
    between.append(text[position:])
    places.append((position, len(text)))
    targets = []
    for span in rendering.targets:
        first, last = _edge(span[0], places), _edge(span[1], places)
        if first is None or last is None:
            return None
        targets.append((first, last))
    return _Skeleton(between, is_trimmed, targets)


def _edge(position: int, places: list[Span]) -> tuple[int, int] | None:
    for index, (start, end) in enumerate(places):
        if start <= position <= end:
            return index, position - start
    return None
