"""Choose the texts to train on, and find the assistant's turns in them.

A turn is what the model has to write at inference: it begins after the prompt for it and ends with
its end-of-turn token. It is a target in a text that begins with exactly that prompt and that turn.

Some templates write a turn differently once other messages follow (Qwen 3 drops old thinking). In
the text of the full conversation such a turn is not what inference sees. So it gets its own text:
the conversation up to and including the turn.
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
class TrainingText:
    """A text, and the spans of it that are trained: in characters, disjoint, in order."""

    text: str
    targets: list[Span]


def training_texts(
    conversation: Conversation, tokenizer: ChatTokenizer, train_on: TrainOn
) -> list[TrainingText]:
    """The texts in which every target turn is trained exactly once; one text for most templates.

    Raises BadRow if there is no target turn, or if a turn cannot be located exactly.
    """
    full_text = render(conversation, tokenizer)
    require_tools(conversation, tokenizer, full_text)
    finder = _TurnFinder(conversation, tokenizer, full_text)
    if train_on == "all":
        return [TrainingText(full_text, _all_but_context(finder))]
    pending = conversation.target_turns
    if not pending:
        raise BadRow(
            "no_target", f"{conversation.source}: no assistant turn to train on", "remove the row"
        )
    if train_on == "last":
        pending = pending[-1:]
    found, text = [], full_text
    while pending:
        if finder.span(pending[-1], text) is None:
            text = finder.text_through(pending[-1])
        within = {turn: span for turn in pending if (span := finder.span(turn, text)) is not None}
        found.append(TrainingText(text, list(within.values())))
        pending = [turn for turn in pending if turn not in within]
    return found[::-1]


@dataclass(slots=True)
class _TurnFinder:
    """Finds messages in texts, by rendering the conversation up to them as inference does."""

    conversation: Conversation
    tokenizer: ChatTokenizer
    full_text: str
    _texts: dict[int, str] = field(default_factory=dict)
    _prompts: dict[int, str] = field(default_factory=dict)

    def span(self, turn: int, text: str) -> Span | None:
        """Where an assistant turn is in `text`; None if `text` differs from what inference sees."""
        prompt, through = self.prompt(turn), self.text_through(turn)
        if not text.startswith(through):
            return None
        answer = through[len(prompt) :]
        require_tool_calls(self.conversation, [turn], answer)
        # The template adds white space after an end-of-turn token. No model has to write it.
        stripped = answer.rstrip()
        if stripped.endswith(self.tokenizer.special_texts):
            answer = stripped
        return len(prompt), len(prompt) + len(answer)

    def context_span(self, message: int) -> Span | None:
        """Where a message of another role is in the full text, with its header; None if unclear.

        The span of the first message includes what the template writes before any message.
        """
        before = self.text_through(message - 1) if message else ""
        through = self.text_through(message)
        is_exact = self.full_text.startswith(through) and through.startswith(before)
        return (len(before), len(through)) if is_exact else None

    def text_through(self, message: int) -> str:
        """The conversation up to and including a message, as text."""
        if message + 1 == len(self.conversation.messages):
            return self.full_text
        if message not in self._texts:
            self._texts[message] = self._render_first(message + 1)
        return self._texts[message]

    def prompt(self, turn: int) -> str:
        """The prompt at inference for an assistant turn; BadRow if it is unclear.

        A thinking block that the prompt opens belongs to the turn, so it is left out here.
        """
        if turn not in self._prompts:
            prompt = self._prompt(turn) if turn else self._first_prompt()
            if not self.text_through(turn).startswith(prompt):
                raise BadRow(
                    "mask_not_exact",
                    f"{self.conversation.source}: message {turn + 1}: the chat template's "
                    "prompt for this turn differs from the text that it writes before the turn",
                    "use another chat template",
                )
            self._prompts[turn] = prompt
        return self._prompts[turn]

    def _prompt(self, turn: int) -> str:
        prompt = self._render_first(turn, prompt=True)
        before = self.conversation.messages[turn - 1]["content"]
        if _OPENED_THINKING.search(before) and prompt == self.text_through(turn - 1):
            return prompt  # the previous message ends with such a block: not opened here
        return _OPENED_THINKING.sub("", prompt)

    def _first_prompt(self) -> str:
        """The prompt of a conversation that begins with the assistant.

        Templates can't render zero messages. So the header is taken from a stand-in conversation,
        and the text before it must be what the template writes before any conversation.
        """
        row, through = self.conversation, self.text_through(0)
        stand_in = replace(row, messages=({"role": "user", "content": "?"},))
        user = render(stand_in, self.tokenizer)
        prompted = render(stand_in, self.tokenizer, prompt=True)
        header = _OPENED_THINKING.sub("", prompted).removeprefix(user)
        preamble, found, _ = through.partition(header) if header else ("", "", "")
        if found != header or not user.startswith(preamble):
            raise BadRow(
                "mask_not_exact",
                f"{row.source}: message 1: can't tell where this first assistant turn begins",
                "begin the conversation with a user message, or use another chat template",
            )
        return preamble + header

    def _render_first(self, num_messages: int, prompt: bool = False) -> str:
        messages = self.conversation.messages[:num_messages]
        return render(replace(self.conversation, messages=messages), self.tokenizer, prompt)


def _all_but_context(finder: _TurnFinder) -> list[Span]:
    """The full text without the messages that are not to be trained."""
    row = finder.conversation
    position, spans = 0, []
    for turn in sorted(row.untrained):
        is_answer = row.messages[turn]["role"] == "assistant"
        span = finder.span(turn, finder.full_text) if is_answer else finder.context_span(turn)
        if span is None:
            raise BadRow(
                "mask_not_exact",
                f"{row.source}: message {turn + 1}: the chat template writes this message "
                "differently when others follow it",
                "train on the assistant's turns only",
            )
        spans.append((position, span[0]))
        position = span[1]
    return [*spans, (position, len(finder.full_text))]
