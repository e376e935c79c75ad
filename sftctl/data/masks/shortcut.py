"""A faster way to the texts to train on, for templates whose use of contents is known.

Consider all conversations with the same roles, whose contents have the same shapes
(`content_shape`). The template writes the same fixed texts around their free texts. These fixed
texts are the layout. A layout is learned once, from a conversation with marks instead of free
texts. For every other conversation, its free texts are put into the layout.

The result is used only if its full text equals the text that the template renders. For one
conversation in a thousand, the result is also compared with that of `turns`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import NamedTuple

from sftctl.config.schema import TrainOn
from sftctl.data.conversations.conversation import Conversation
from sftctl.data.ledger import BadRow
from sftctl.data.masks.content_shape import ContentShapes, Shape, cut_at_marks, mark
from sftctl.data.masks.render import render
from sftctl.data.masks.turns import TrainingText, training_texts
from sftctl.errors import LayoutDiffers
from sftctl.model.tokenizer.encoders import Span
from sftctl.model.tokenizer.tokenizer import ChatTokenizer

_LayoutKey = tuple[tuple[tuple[str, Shape], ...], frozenset[int]]
"""(role and shape of every message, numbers of the messages that are not trained)."""

_COMPARED = 1000
"""One conversation in so many, chosen by its hash, is made in both ways and compared."""


class _Edge(NamedTuple):
    """Where a target begins or ends: `offset` characters into the fixed text number `text`."""

    text: int
    offset: int


class _Target(NamedTuple):
    start: _Edge
    end: _Edge


@dataclass(frozen=True, slots=True)
class _TextLayout:
    """The N+1 fixed texts that a template writes around N free texts."""

    fixed: list[str]  # N+1
    free: list[int]  # N numbers of free texts
    targets: list[_Target] = field(default_factory=list)
    may_be_apart: bool = False

    def filled(self, free_texts: Sequence[str]) -> TrainingText:
        """The text of a conversation that has these free texts."""
        parts = [self.fixed[0]]
        for number, after in zip(self.free, self.fixed[1:], strict=True):
            parts += [free_texts[number], after]
        starts = list(accumulate(map(len, parts), initial=0))[::2]  # where each fixed text begins
        spans = [
            (starts[start.text] + start.offset, starts[end.text] + end.offset)
            for start, end in self.targets
        ]
        return TrainingText("".join(parts), spans, self.may_be_apart)


@dataclass(frozen=True, slots=True)
class _Layout:
    """What is known about conversations with the same roles and shapes."""

    texts: list[_TextLayout]  # the texts to train on
    full: _TextLayout  # the full text
    after_answer: str  # the text after the last answer; empty if it is only an end token

    @property
    def size(self) -> int:
        """The number of fixed texts."""
        return sum(len(text.fixed) for text in (*self.texts, self.full))


@dataclass(slots=True)
class Renderer:
    """Renders conversations to texts to train on. Keeps learned layouts in memory."""

    tokenizer: ChatTokenizer
    train_on: TrainOn
    max_layouts: int = 4096  # limit of layouts in memory
    max_fixed_texts: int = 1_000_000  # limit of fixed texts in memory, over all layouts
    _layouts: dict[_LayoutKey, _Layout | None] = field(default_factory=dict)
    _num_fixed: int = 0
    _shapes: ContentShapes | None = None

    def __post_init__(self) -> None:
        if self.tokenizer.content_use is not None:
            self._shapes = ContentShapes.of(self.tokenizer.content_use, self.tokenizer)

    def training_texts(self, row: Conversation) -> list[TrainingText]:
        """The same result or error as `turns.training_texts`, usually with only one rendering.

        Raises LayoutDiffers if both ways were compared and the texts differ.
        """
        found = self._from_layout(row)
        if found is None:
            return training_texts(row, self.tokenizer, self.train_on)
        if row.digest % _COMPARED == _COMPARED - 1:
            self._compare(row, found)
        return found

    def _compare(self, row: Conversation, found: list[TrainingText]) -> None:
        try:
            is_equal = training_texts(row, self.tokenizer, self.train_on) == found
        except BadRow:
            is_equal = False
        if not is_equal:
            raise LayoutDiffers(f"{row.source}: the texts differ when every prefix is rendered")

    def _from_layout(self, row: Conversation) -> list[TrainingText] | None:
        """The texts of a row, from its layout. None if the layout can't be used for this row."""
        pieces = self._pieces(row)
        if pieces is None:
            return None
        shapes, free_texts = pieces
        roles = tuple(m["role"] for m in row.messages)
        key = tuple(zip(roles, shapes, strict=True)), row.untrained
        if key not in self._layouts:
            self._remember(key, self._learned(row, shapes))
        layout = self._layouts[key]
        if layout is None or self._is_ambiguous(row, layout):
            return None
        full = layout.full.filled(free_texts)
        try:
            if full.text != render(row, self.tokenizer):
                return None
        except BadRow:
            return None
        return [full if text is layout.full else text.filled(free_texts) for text in layout.texts]

    def _pieces(self, row: Conversation) -> tuple[list[Shape], list[str]] | None:
        """Shapes and free texts of all contents. None if the row has more than roles and contents,
        or if a content can't be split."""
        if self._shapes is None or row.tools or row.weights or row.shape == "text":
            return None
        shapes, free_texts = list[Shape](), list[str]()
        for message in row.messages:
            pieces = None if len(message) > 2 else self._shapes.split(message["content"])
            if pieces is None:
                return None
            shapes.append(pieces[0])
            free_texts += pieces[1]
        return shapes, free_texts

    def _is_ambiguous(self, row: Conversation, layout: _Layout) -> bool:
        """Whether the text after the last answer contains an answer. `ends` would then look for the
        end of the turn in the wrong place."""
        if not layout.after_answer:
            return False
        answers = (row.messages[turn]["content"].strip() for turn in row.target_turns)
        return any(answer and answer in layout.after_answer for answer in answers)

    def _remember(self, key: _LayoutKey, layout: _Layout | None) -> None:
        size = 0 if layout is None else layout.size
        self._num_fixed += size
        if len(self._layouts) >= self.max_layouts or self._num_fixed > self.max_fixed_texts:
            self._layouts.clear()
            self._num_fixed = size
        self._layouts[key] = layout

    def _learned(self, row: Conversation, shapes: Sequence[Shape]) -> _Layout | None:
        """Learn a layout from `row` with marks instead of its free texts. None if that fails."""
        number, messages = 0, []
        for message, shape in zip(row.messages, shapes, strict=True):
            content = shape[0]
            for after in shape[1:]:
                content += mark(number) + after
                number += 1
            messages.append(message | {"content": content})
        stand_in = replace(row, messages=tuple(messages))
        try:
            full_text = render(stand_in, self.tokenizer)
            found = training_texts(stand_in, self.tokenizer, self.train_on)
            after = self._after_answer(stand_in)
        except BadRow:
            return None  # such rows take the long way, whose errors name file and line
        texts = [_text_layout(text) for text in found]
        full = _text_layout(TrainingText(full_text, []))
        assert full is not None
        known = [text for text in texts if text is not None]
        if len(known) < len(texts):
            return None
        same = [t for t in known if t.fixed == full.fixed and t.free == full.free]
        return _Layout(known, same[0] if same else full, after)

    def _after_answer(self, row: Conversation) -> str:
        """The text after the last answer. Empty if it is only white space and an end token."""
        if self.train_on == "all" or not row.target_turns:
            return ""
        through = replace(row, messages=row.messages[: row.target_turns[-1] + 1])
        after = cut_at_marks(render(through, self.tokenizer))[0][-1]
        tokens = [text for text in self.tokenizer.special_texts if text in after]
        is_end = after.rstrip().endswith(self.tokenizer.special_texts)
        return after if len(tokens) > 1 or (tokens and not is_end) else ""


def _text_layout(text: TrainingText) -> _TextLayout | None:
    """The layout of a text with marks. None if a target begins or ends inside a mark."""
    fixed, free = cut_at_marks(text.text)
    places, position = list[Span](), 0
    for index, part in enumerate(fixed):
        places.append((position, position + len(part)))
        position += len(part) + (len(mark(free[index])) if index < len(free) else 0)
    targets = []
    for span in text.targets:
        first, last = (_edge(position, places) for position in span)
        if first is None or last is None:
            return None
        targets.append(_Target(first, last))
    return _TextLayout(fixed, free, targets, text.may_be_apart)


def _edge(position: int, places: list[Span]) -> _Edge | None:
    """A position as a place in a fixed text. None if the position is inside a free text."""
    for index, (start, end) in enumerate(places):
        if start <= position <= end:
            return _Edge(index, position - start)
    return None
