"""Where assistant turns lie in the text that a chat template makes of a conversation.

A turn is what inference would have to write: it begins behind the prompt for it, and prompt and
turn together begin the rendered text. A template that writes earlier turns otherwise once others
follow (Qwen 3 drops old thinking) makes texts in which they are not what inference sees: such a
turn gets a text of its own, the conversation up to it, as it was when the turn was the last.
"""

import re
from dataclasses import dataclass, field, replace

from sftctl.config.schema import TrainOn
from sftctl.data.conversations.conversation import Conversation
from sftctl.data.ledger import BadRow
from sftctl.data.masks.render import render, require_tool_calls, require_tools
from sftctl.model.tokenizer.encoders import Span
from sftctl.model.tokenizer.tokenizer import ChatTokenizer

_OPENED_THINKING = re.compile(r"<think>\s*(</think>\s*)?\Z")


@dataclass(frozen=True, slots=True)
class Rendering:
    """One text to train on, and which of its characters: disjoint spans, in order."""

    text: str
    targets: list[Span]


def renderings(
    conversation: Conversation, tokenizer: ChatTokenizer, train_on: TrainOn
) -> list[Rendering]:
    """The texts that train every target turn once; one is enough for most templates."""
    turns = _Turns(conversation, tokenizer)
    text = turns.render(len(conversation.messages))
    require_tools(conversation, tokenizer, text)
    if train_on == "all":
        return [Rendering(text, _gaps(turns, text))]
    pending = _trainable(conversation)
    if not pending:
        raise BadRow(
            "no_target", f"{conversation.source}: no assistant turn to train on", "remove the row"
        )
    if train_on == "last":
        pending = pending[-1:]
    if turns.span(pending[-1], text) is None:
        text = turns.as_last(pending[-1])
    found: list[Rendering] = []
    while pending:  # the last of them always lies within the text
        within = {turn: span for turn in pending if (span := turns.span(turn, text)) is not None}
        found.append(Rendering(text, list(within.values())))
        pending = [turn for turn in pending if turn not in within]
        if pending:
            text = turns.as_last(pending[-1])
    return found[::-1]


@dataclass(slots=True)
class _Turns:
    """A conversation's turns, each rendered as inference has it: nothing comes behind it."""

    conversation: Conversation
    tokenizer: ChatTokenizer
    _known: dict[int, tuple[str, str]] = field(default_factory=dict)

    def span(self, turn: int, text: str) -> Span | None:
        """Where the turn lies in `text`; None where `text` has not what inference would see."""
        header, until = self._rendered(turn, text)
        if not text.startswith(until):
            return None
        said = until[len(header) :]
        require_tool_calls(self.conversation, [turn], said)
        # White space behind an end-of-turn token is the template's: no model has to write it.
        ended = said.rstrip()
        if not ended.endswith(self.tokenizer.special_texts):
            ended = said
        return len(header), len(header) + len(ended)

    def span_of_context(self, message: int, text: str) -> Span | None:
        """Where a message of another role lies in `text`, header and all; None if it can't be told.

        The first one begins with the text, for nothing before it is anybody's words.
        """
        before = self.render(message) if message else ""
        until = text if message + 1 == len(self.conversation.messages) else self.as_last(message)
        is_told = text.startswith(until) and until.startswith(before)
        return (len(before), len(until)) if is_told else None

    def as_last(self, turn: int) -> str:
        """The conversation up to and with this turn."""
        return self.render(turn + 1)

    def render(self, num_messages: int, prompt: bool = False) -> str:
        """The first messages as text, with the prompt for an answer if asked for."""
        first = replace(self.conversation, messages=self.conversation.messages[:num_messages])
        return render(first, self.tokenizer, prompt)

    def _rendered(self, turn: int, text: str) -> tuple[str, str]:
        """The prompt for the turn, and the text that ends with the turn."""
        if turn not in self._known:
            is_last = turn + 1 == len(self.conversation.messages)
            until = text if is_last else self.as_last(turn)
            header = self._header(turn) if turn else _first_header(self, until)
            if not (until.startswith(header)):
                raise BadRow(
                    "mask_not_exact",
                    f"{self.conversation.source}: message {turn + 1}: the chat template prompts "
                    "for this turn with other text than it writes before it",
                    "use another chat template",
                )
            self._known[turn] = header, until
        return self._known[turn]

    def _header(self, turn: int) -> str:
        """What inference is prompted with; a thinking block that it opens is the turn's."""
        prompt = self.render(turn, prompt=True)
        said = self.conversation.messages[turn - 1]["content"]
        if _OPENED_THINKING.search(said) and prompt == self.render(turn):
            return prompt  # the prompt opens nothing: these are words of the message before
        return _OPENED_THINKING.sub("", prompt)


def _first_header(turns: _Turns, text: str) -> str:
    """The header of a conversation that begins with the assistant.

    Templates can't render zero messages, so the header is taken from behind a stand-in, and what
    stands before it must be what the template puts before any conversation.
    """
    row = turns.conversation
    stand_in = _Turns(
        Conversation(({"role": "user", "content": "?"},), row.tools, row.source), turns.tokenizer
    )
    without = stand_in.render(1)
    header = _OPENED_THINKING.sub("", stand_in.render(1, prompt=True)).removeprefix(without)
    preamble, found, _ = text.partition(header) if header else ("", "", text)
    if not without.startswith(preamble) or found != header:
        raise BadRow("mask_not_exact", f"{row.source}: message 1: its header can't be told exactly")
    return preamble + header


def _trainable(row: Conversation) -> list[int]:
    turns = (i for i, message in enumerate(row.messages) if message["role"] == "assistant")
    return [turn for turn in turns if turn not in row.untrained]


def _gaps(turns: _Turns, text: str) -> list[Span]:
    """All of `text` but the messages that are not to be trained."""
    row = turns.conversation
    position, gaps = 0, []
    for turn in sorted(row.untrained):
        is_said = row.messages[turn]["role"] == "assistant"
        span = turns.span(turn, text) if is_said else turns.span_of_context(turn, text)
        if span is None:
            raise BadRow(
                "mask_not_exact",
                f"{row.source}: message {turn + 1}: the chat template renders this turn "
                "differently within the whole conversation than at its end",
                "train on the assistant's turns only",
            )
        gaps.append((position, span[0]))
        position = span[1]
    return [*gaps, (position, len(text))]
