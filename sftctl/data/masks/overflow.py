"""Rows longer than the maximum: cut short, dropped, or split at turn boundaries."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from sftctl.config.schema import Overflow
from sftctl.data.conversations.conversation import Conversation
from sftctl.data.example import TokenizedExample
from sftctl.data.ledger import BadRow, Note, TooLong
from sftctl.data.masks.encode import encoded
from sftctl.data.masks.render import render
from sftctl.data.masks.shortcut import Renderer
from sftctl.model.tokenizer.tokenizer import ChatTokenizer


@dataclass(frozen=True, slots=True)
class Fitting:
    """Makes examples of at most `max_seq_len` tokens, and notes for what that costs."""

    tokenizer: ChatTokenizer
    renderer: Renderer
    max_seq_len: int
    overflow: Overflow

    def examples(self, row: Conversation) -> tuple[list[TokenizedExample], list[Note]]:
        """The examples of a row, none where nothing of it can be trained; BadRow as `encoded`."""
        whole = self._tokenized(row)
        if self._fit(whole):
            return whole, []
        num_tokens = sum(example.num_tokens for example in whole)
        if self.overflow == "split" and len(pieces := list(self._pieces(row))) > 1:
            kept, lost = self._shortened([example for piece in pieces for example in piece])
            if kept:
                return kept, [Note.split(row.source, len(kept), lost)]
        else:
            kept, lost = self._shortened(whole)
        if not kept:
            reason: TooLong = "too_long_dropped" if self.overflow == "drop" else "no_target"
            return [], [Note.too_long(row.source, reason, num_tokens)]
        return kept, [Note.too_long(row.source, "truncated", lost)]

    def _tokenized(self, row: Conversation) -> list[TokenizedExample]:
        try:
            return encoded(self.renderer.renderings(row), row, self.tokenizer)
        except BadRow as problem:
            problem.tokens_lost = problem.tokens_lost or self._num_tokens(row)
            raise

    def _num_tokens(self, row: Conversation) -> int:
        """Of a row that is refused; 0 where the template refuses it."""
        with suppress(BadRow):
            return len(self.tokenizer.encode(render(row, self.tokenizer)))
        return 0

    def _fit(self, examples: list[TokenizedExample]) -> bool:
        return all(example.num_tokens <= self.max_seq_len for example in examples)

    def _shortened(self, examples: list[TokenizedExample]) -> tuple[list[TokenizedExample], int]:
        """The examples that are left within the maximum, and the tokens that this costs."""
        kept, lost = [], 0
        for example in examples:
            cut = example
            if example.num_tokens > self.max_seq_len:
                cut = example.first(0 if self.overflow == "drop" else self.max_seq_len)
            if cut.num_target_tokens:
                kept.append(cut)
            lost += example.num_tokens - cut.num_tokens * bool(cut.num_target_tokens)
        return kept, lost

    def _pieces(self, row: Conversation) -> Iterator[list[TokenizedExample]]:
        """The examples of the conversation's parts: each the most exchanges that fit, or one.

        A part repeats the system prompt, and so begins as the template begins. It knows nothing of
        the parts before it.
        """
        if self.renderer.train_on == "last":
            row = _only_last_trained(row)
        head, starts = _exchanges(row)
        ends = [*starts[1:], len(row.messages)]
        first = 0
        while first < len(starts):
            last = first
            while last + 1 < len(starts) and self._fits_whole(
                _part(row, head, starts[first], ends[last + 1])
            ):
                last += 1
            piece = self._piece(_part(row, head, starts[first], ends[last]))
            while last > first and not self._fit(piece):  # a turn alone is longer than it is later
                last -= 1
                piece = self._piece(_part(row, head, starts[first], ends[last]))
            yield piece
            first = last + 1

    def _fits_whole(self, part: Conversation) -> bool:
        """Whether the text of a part has room: far cheaper to know than its examples."""
        text = render(part, self.tokenizer)
        return len(self.tokenizer.encode(text)) <= self.max_seq_len

    def _piece(self, part: Conversation) -> list[TokenizedExample]:
        try:
            return self._tokenized(part)
        except BadRow as problem:
            if problem.reason != "no_target":
                raise
            return []


def _part(row: Conversation, head: int, start: int, end: int) -> Conversation:
    """The system messages, and messages `start` to `end`."""
    untrained = {index - start + head for index in row.untrained if index >= start}
    untrained |= {index for index in row.untrained if index < head}
    messages = row.messages[:head] + row.messages[start:end]
    return replace(row, messages=messages, untrained=frozenset(untrained))


def _exchanges(row: Conversation) -> tuple[int, list[int]]:
    """How many system messages begin the row, and where the exchanges behind them begin."""
    roles = [message["role"] for message in row.messages]
    head = next((i for i, role in enumerate(roles) if role != "system"), len(roles))
    inner = range(head + 1, len(roles))
    return head, [head, *(i for i in inner if roles[i] == "user" and roles[i - 1] != "user")]


def _only_last_trained(row: Conversation) -> Conversation:
    turns = [i for i, message in enumerate(row.messages) if message["role"] == "assistant"]
    trained = [turn for turn in turns if turn not in row.untrained]
    return replace(row, untrained=row.untrained | frozenset(trained[:-1]))
