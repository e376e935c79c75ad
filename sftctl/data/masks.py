"""From conversations to tokens and exact loss masks.

A conversation is rendered once, as inference renders it. Where an assistant turn lies in that text
is found by rendering what comes before it and what ends with it; both must be beginnings of the
whole text. Characters are mapped to tokens by offsets. What can't be mapped exactly is an error.
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from typing import Literal

import numpy as np

from sftctl.data.chat import ChatTokenizer, Span, TokenizedExample
from sftctl.data.conversation import Conversation
from sftctl.data.reasons import BadRow
from sftctl.errors import DataError

TrainOn = Literal["assistant", "last", "all"]

MASK_RULES_VERSION = 1
"""Changes when the same text would be masked in another way."""

_OPENED_THINKING = re.compile(r"<think>\s*(</think>\s*)?\Z")


def tokenize(
    conversations: Sequence[Conversation], tokenizer: ChatTokenizer, train_on: TrainOn
) -> list[TokenizedExample]:
    """Tokens and masks of a batch; BadRow with file and line for a row that has none."""
    texts = [_render(row, tokenizer, len(row.messages)) for row in conversations]
    targets = [
        target_spans(row, tokenizer, text, train_on)
        for row, text in zip(conversations, texts, strict=True)
    ]
    examples = []
    encoded = tokenizer.encode_batch(texts)
    for row, text, spans, (ids, offsets) in zip(
        conversations, texts, targets, encoded, strict=True
    ):
        mask = np.full(len(ids), train_on == "all")  # (T,)
        for span in spans:
            start, end = _token_range(row, tokenizer, text, span, ids, offsets)
            mask[start:end] = True
        mask[:1] = False  # nothing comes before the first token, so nothing predicts it
        if not mask.any():
            raise BadRow("no_target", f"{row.source}: no token to train on", "remove the row")
        examples.append(TokenizedExample(np.asarray(ids, dtype=np.int32), mask))
    return examples


def target_spans(
    conversation: Conversation, tokenizer: ChatTokenizer, text: str, train_on: TrainOn
) -> list[Span]:
    """The assistant turns to learn, as characters of `text`; none where all of it is learned."""
    messages = conversation.messages
    _require_tools(conversation, text)
    _require_tool_calls(conversation, range(len(messages)), text)
    if train_on == "all":
        return []
    turns = [
        index
        for index, message in enumerate(messages)
        if message["role"] == "assistant" and index not in conversation.untrained
    ]
    if not turns:
        raise BadRow(
            "no_target", f"{conversation.source}: no assistant turn to train on", "remove the row"
        )
    spans = []
    for index in turns[-1:] if train_on == "last" else turns:
        start, end = _turn_span(conversation, tokenizer, text, index)
        _require_tool_calls(conversation, [index], text[start:end])
        spans.append((start, end))
    return spans


def _render(
    conversation: Conversation, tokenizer: ChatTokenizer, num_messages: int, prompt: bool = False
) -> str:
    messages = list(conversation.messages[:num_messages])
    try:
        return tokenizer.render(messages, conversation.tools, prompt)
    except DataError as problem:
        raise BadRow(
            "template_refused", f"{conversation.source}: {problem.message}", problem.hint
        ) from problem


def _turn_span(conversation: Conversation, tokenizer: ChatTokenizer, text: str, index: int) -> Span:
    """Where turn `index` lies in `text`, its header (what inference is prompted with) left out."""
    if index == 0:
        header = _first_header(conversation, tokenizer, text)
    else:
        header = _header(conversation, tokenizer, index)
    is_last = index + 1 == len(conversation.messages)
    until = text if is_last else _render(conversation, tokenizer, index + 1)
    if not (text.startswith(until) and text.startswith(header) and len(header) <= len(until)):
        raise BadRow(
            "mask_not_exact",
            f"{conversation.source}: message {index + 1}: the chat template renders this turn "
            "differently within the whole conversation than at its end",
            "train on the last turn only, or use another chat template",
        )
    return len(header), len(until)


def _header(conversation: Conversation, tokenizer: ChatTokenizer, index: int) -> str:
    """What inference is prompted with for turn `index`; a thinking block it opens is the turn's."""
    prompt = _render(conversation, tokenizer, index, prompt=True)
    said = conversation.messages[index - 1]["content"]
    if _OPENED_THINKING.search(said) and prompt == _render(conversation, tokenizer, index):
        return prompt  # the prompt opens nothing: these are words of the message before
    return _OPENED_THINKING.sub("", prompt)


def _first_header(conversation: Conversation, tokenizer: ChatTokenizer, text: str) -> str:
    """The header of a conversation that begins with the assistant.

    Templates can't render zero messages, so the header is taken from behind a stand-in, and what
    stands before it must be what the template puts before any conversation.
    """
    stand_in = Conversation(
        ({"role": "user", "content": "?"},), conversation.tools, conversation.source
    )
    without = _render(stand_in, tokenizer, 1)
    prompt = _render(stand_in, tokenizer, 1, prompt=True)
    header = _OPENED_THINKING.sub("", prompt).removeprefix(without)
    preamble, found, _ = text.partition(header) if header else ("", "", text)
    if not without.startswith(preamble) or found != header:
        raise BadRow(
            "mask_not_exact", f"{conversation.source}: message 1: its header can't be told exactly"
        )
    return preamble + header


def _require_tools(conversation: Conversation, text: str) -> None:
    """A template that drops the tools would teach calls of what the model was never shown."""
    for tool in conversation.tools or ():
        name = tool.get("function", tool).get("name") if isinstance(tool, dict) else None
        if isinstance(name, str) and name not in text:
            raise BadRow(
                "tools_not_rendered",
                f"{conversation.source}: the chat template does not render the tool {name!r}",
                "use a tokenizer or a chat template that renders tools",
            )


def _require_tool_calls(conversation: Conversation, turns: Sequence[int], text: str) -> None:
    """Many templates drop tool calls without a word; training on the rest would teach silence."""
    for index in turns:
        for call in conversation.messages[index].get("tool_calls", ()):
            if call["function"]["name"] not in text:
                raise BadRow(
                    "tools_not_rendered",
                    f"{conversation.source}: message {index + 1}: "
                    "the chat template does not render tool calls",
                    "use a tokenizer or a chat template that renders them",
                )


def _token_range(
    conversation: Conversation,
    tokenizer: ChatTokenizer,
    text: str,
    span: Span,
    ids: list[int],
    offsets: list[Span],
) -> tuple[int, int]:
    """The tokens that cover the span; without what follows its end-of-turn token if it is space."""
    start = _token_at(offsets, span[0])
    end = _token_at(offsets, len(text[: span[1]].rstrip()))
    if not end or ids[end - 1] not in tokenizer.special_ids:
        end = _token_at(offsets, span[1])
    if start is None or end is None:
        raise BadRow(
            "mask_not_exact",
            f"{conversation.source}: a token lies half inside an assistant turn",
            "use a chat template with special tokens around the turns",
        )
    return start, end


def _token_at(offsets: list[Span], position: int) -> int | None:
    """How many tokens end at or before the character; None if one straddles it or leaves a gap.

    Tokens that are bytes of one character have the same offsets, so all of them are on one side.
    """
    index = bisect_right(offsets, position, key=_end)
    end_before = offsets[index - 1][1] if index else 0
    start_after = offsets[index][0] if index < len(offsets) else end_before
    return index if end_before == start_after == position else None


def _end(span: Span) -> int:
    return span[1]
