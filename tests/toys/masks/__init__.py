"""Conversations to train on, and the text of what is trained."""

from collections.abc import Iterable
from typing import Any

from sftctl.config.schema import TrainOn
from sftctl.data.conversations.conversation import Conversation
from sftctl.data.example import TokenizedExample
from sftctl.data.masks.encode import tokenize
from sftctl.model.tokenizer.tokenizer import ChatTokenizer
from tests.toys.data import read

Messages = Iterable[dict[str, Any]]

EMPTY_THINKING = "<think>\n\n</think>\n\n"
CALL = {"type": "function", "function": {"name": "search", "arguments": {"q": "crêpes"}}}

TURNS: list[dict[str, Any]] = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi <think> "},
    {"role": "assistant", "content": "Hello\n\n"},
    {"role": "user", "content": "你好🤖"},
    {"role": "assistant", "content": "🤖你好，世界👩‍👩‍👧"},
]
TOOL_TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": "Find"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "[1]"},
    {"role": "tool", "content": "[2]"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "assistant", "content": "Found", "reasoning_content": "hm"},
]


def conversation(messages: Messages, **row: Any) -> Conversation:
    return read({"messages": list(messages)} | row, "messages")


def trained_runs(example: TokenizedExample, tokenizer: ChatTokenizer) -> list[str]:
    """The longest runs of trained tokens, as text."""
    runs: list[list[int]] = []
    is_after_target = False
    for token, is_target in zip(example.input_ids.tolist(), example.loss_mask, strict=True):
        if is_target and not is_after_target:
            runs.append([])
        if is_target:
            runs[-1].append(token)
        is_after_target = bool(is_target)
    return [tokenizer.decode(run) for run in runs]


def trained(
    tokenizer: ChatTokenizer, messages: Messages, train_on: TrainOn = "assistant", **row: Any
) -> list[str]:
    """The trained runs of a conversation that becomes one example."""
    [example] = tokenize(conversation(messages, **row), tokenizer, train_on)
    return trained_runs(example, tokenizer)
