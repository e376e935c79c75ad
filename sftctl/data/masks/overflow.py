"""Make examples of at most `max_seq_len` tokens: longer rows are truncated, split or dropped."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from sftctl.config.schema import Overflow
from sftctl.data.conversations.conversation import Conversation
from sftctl.data.conversations.marks import moved
from sftctl.data.example import TokenizedExample
from sftctl.data.ledger import BadRow, Note, TooLong
from sftctl.data.masks.encode import encode_texts
from sftctl.data.masks.leading import naming_the_option, without_leading_answers
from sftctl.data.masks.render import render
from sftctl.data.masks.server_form import as_servers_send
from sftctl.data.masks.shortcut import Renderer
from sftctl.model.tokenizer.tokenizer import ChatTokenizer


@dataclass(frozen=True, slots=True)
class ExampleMaker:
    """Makes examples of at most `max_seq_len` tokens, and notes for the ledger."""

    tokenizer: ChatTokenizer
    renderer: Renderer
    max_seq_len: int
    overflow: Overflow
    drops_leading: bool = False  # True: leave out assistant turns before the first user turn

    def examples(self, row: Conversation) -> tuple[list[TokenizedExample], list[Note]]:
        """The examples of a row, and notes about lost tokens.

        There are no examples if the row is dropped because it is too long. Raises BadRow as
        `tokenize` does.
        """
        if self.drops_leading:
            row = without_leading_answers(row)
        row = as_servers_send(row, self.tokenizer)
        complete = self._tokenize(row)
        if self._fit(complete):
            return complete, []
        num_tokens = sum(example.num_tokens for example in complete)
        if self.overflow == "split" and row.shape == "text":
            pieces = list(_pieces(complete[0], self.max_seq_len))
            return pieces, [Note.split(row.source, len(pieces), 0)]
        if self.overflow == "split" and len(parts := list(self._parts(row))) > 1:
            kept, lost = self._shortened([example for part in parts for example in part])
            if kept:
                return kept, [Note.split(row.source, len(kept), lost)]
        else:
            kept, lost = self._shortened(complete)
        if not kept:
            reason: TooLong = "too_long_dropped" if self.overflow == "drop" else "no_target"
            return [], [Note.too_long(row.source, reason, num_tokens)]
        return kept, [Note.too_long(row.source, "truncated", lost)]

    def _tokenize(self, row: Conversation) -> list[TokenizedExample]:
        try:
            return encode_texts(self.renderer.training_texts(row), row, self.tokenizer)
        except BadRow as problem:
            problem.tokens_lost = self._num_tokens(row)
            if problem.reason in ("template_refused", "mask_not_exact"):
                problem = naming_the_option(problem, row)
            raise problem from None

    def _num_tokens(self, row: Conversation) -> int:
        """The number of tokens of a dropped row. 0 if the template refuses the row."""
        with suppress(BadRow):
            return len(self.tokenizer.encode(render(row, self.tokenizer)))
        return 0

    def _fit(self, examples: list[TokenizedExample]) -> bool:
        return all(example.num_tokens <= self.max_seq_len for example in examples)

    def _shortened(self, examples: list[TokenizedExample]) -> tuple[list[TokenizedExample], int]:
        """The examples cut to the maximum length, and the number of lost tokens. With overflow
        "drop", and without target tokens, an example is dropped."""
        kept, lost = [], 0
        for example in examples:
            short = example
            if example.num_tokens > self.max_seq_len:
                short = example.first(0 if self.overflow == "drop" else self.max_seq_len)
            if short.num_target_tokens:
                kept.append(short)
                lost += example.num_tokens - short.num_tokens
            else:
                lost += example.num_tokens
        return kept, lost

    def _parts(self, row: Conversation) -> Iterator[list[TokenizedExample]]:
        """The examples of each part of a split conversation.

        A part has as many exchanges as fit, but at least one. Each part begins with the system
        messages of the conversation. Earlier exchanges are not repeated.
        """
        if self.renderer.train_on == "last":
            row = replace(row, untrained=row.untrained | frozenset(row.target_turns[:-1]))
        num_system, starts = _exchanges(row)
        bounds = [*starts, len(row.messages)]
        first = 0
        while first < len(starts):
            end = first + 1  # the part is exchange `first` to `end`, exclusive
            while end < len(starts) and self._text_fits(
                _part(row, num_system, bounds[first], bounds[end + 1])
            ):
                end += 1
            examples = self._part_examples(_part(row, num_system, bounds[first], bounds[end]))
            # A turn that needs a separate example can be longer than the text of the part.
            while end > first + 1 and not self._fit(examples):
                end -= 1
                examples = self._part_examples(_part(row, num_system, bounds[first], bounds[end]))
            yield examples
            first = end

    def _text_fits(self, part: Conversation) -> bool:
        """Whether the part's text fits. This is much faster than to make its examples."""
        text = render(part, self.tokenizer)
        return len(self.tokenizer.encode(text)) <= self.max_seq_len

    def _part_examples(self, part: Conversation) -> list[TokenizedExample]:
        try:
            return self._tokenize(part)
        except BadRow as problem:
            if problem.reason != "no_target":
                raise
            return []


def _pieces(document: TokenizedExample, max_seq_len: int) -> Iterator[TokenizedExample]:
    """A long document as examples of at most `max_seq_len` tokens.

    Each example begins with the last token of the previous example. So every token is predicted
    once.
    """
    for start in range(0, document.num_tokens - 1, max_seq_len - 1):
        mask = np.array(document.loss_mask[start : start + max_seq_len])
        mask[0] = False
        yield TokenizedExample(document.input_ids[start : start + max_seq_len], mask)


def _exchanges(row: Conversation) -> tuple[int, list[int]]:
    """The number of system messages at the start, and the index of the first message of each
    exchange.

    An exchange has one or more user messages, and all messages up to the next user message.
    """
    roles = [message["role"] for message in row.messages]
    num_system = next((i for i, role in enumerate(roles) if role != "system"), len(roles))
    later = range(num_system + 1, len(roles))
    is_start = (i for i in later if roles[i] == "user" and roles[i - 1] != "user")
    return num_system, [num_system, *is_start]


def _part(row: Conversation, num_system: int, start: int, end: int) -> Conversation:
    """The system messages, and messages `start` to `end`, exclusive."""
    untrained = {index for index in row.untrained if index < num_system}
    untrained |= {index - start + num_system for index in row.untrained if start <= index < end}
    messages = row.messages[:num_system] + row.messages[start:end]
    kept = [*range(num_system), *range(start, end)]
    weights = moved(row.weights, kept)
    return replace(row, messages=messages, untrained=frozenset(untrained), weights=weights)
