"""The mask audit: counts faulty or unusual examples, turns and rows of a store."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sftctl.config.schema import TrainOn
from sftctl.data.conversations.conversation import Conversation
from sftctl.data.example import ExampleArrays, TokenizedExample
from sftctl.data.manifest import Audit
from sftctl.data.masks.thinking import open_thought
from sftctl.model.tokenizer.tokenizer import ChatTokenizer

_RARE = ("\U0010fffd", "\ue83a")  # characters without a meaning, which no vocabulary has as tokens
_PLACES = ("<image>", "<video>", "<audio>")
_PLACEHOLDER = re.compile(r"^\s*<(image|video|audio)>|\n\s*<(image|video|audio)>\s*(\n|$)")
"""The texts that other tools write in place of an image, a video or a sound."""


def audit(
    examples: ExampleArrays, tokenizer: ChatTokenizer, max_seq_len: int, train_on: TrainOn
) -> Audit:
    """Audit examples in the form in which they are stored."""
    ids, lengths = examples.input_ids, examples.lengths
    mask = examples.loss_mask if examples.turn_mask is None else examples.turn_mask
    weights = examples.loss_weights
    if not len(lengths):
        return Audit()
    ends = np.cumsum(lengths)
    is_last = np.zeros(len(ids), dtype=np.bool_)  # (T,) True: an example ends here
    is_last[ends - 1] = True
    turn_ends = np.flatnonzero(mask & (is_last | ~np.append(mask[1:], False)))
    has_end = np.isin(ids[turn_ends], list(tokenizer.special_ids))
    full = np.repeat(lengths == max_seq_len, lengths)
    is_cut = ~has_end & is_last[turn_ends] & full[turn_ends]
    bos = -1 if tokenizer.bos_id is None else tokenizer.bos_id
    first, second = ids[ends - lengths], ids[np.minimum(ends - lengths + 1, len(ids) - 1)]
    two_bos = (first == second) & (first == bos) & (lengths > 1)
    return Audit.of(
        num_examples=len(lengths),
        examples_without_target=int(np.count_nonzero(examples.target_lengths == 0)),
        examples_with_two_bos=int(np.count_nonzero(two_bos)),
        turns=len(turn_ends),
        targets_weighted=0 if weights is None else int(np.count_nonzero(~np.isin(weights, (0, 1)))),
        turns_cut=int(np.count_nonzero(is_cut)),
        # With train_on=all, a series of target tokens covers many turns. So the end of the series
        # shows nothing about the ends of turns.
        turns_without_end=0 if train_on == "all" else int(np.count_nonzero(~has_end & ~is_cut)),
    )


@dataclass(slots=True)
class RowRemarks:
    """Counts kept rows that the user should know about, with the place of the first such row."""

    train_on: TrainOn
    unknown: tuple[int, str] | None = None  # id and text of the token for unknown characters
    rows: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, row: Conversation, examples: Sequence[TokenizedExample] = ()) -> None:
        """Count a row that is kept, as these examples."""
        if self.unknown is not None and _trains_unknown(row, examples, *self.unknown):
            self._count("unknown_token", row)
        if row.shape == "text":
            return
        turns = row.target_turns[-1:] if self.train_on == "last" else row.target_turns
        questions = [message for message in row.messages if message["role"] == "user"]
        for remark, holds in (
            ("empty_answer", any(_is_empty(row.messages[turn]) for turn in turns)),
            ("open_thought", any(open_thought(row.messages[turn]["content"]) for turn in turns)),
            ("empty_question", any(map(_is_empty, questions))),
            ("placeholder", any(_holds_a_place(m["content"]) for m in questions)),
            ("unlisted_call", bool(row.tools) and not _called(row) <= _listed(row)),
        ):
            if holds:
                self._count(remark, row)

    def _count(self, remark: str, row: Conversation) -> None:
        self.rows[remark] += 1
        self.first.setdefault(remark, str(row.source))

    def audit(self) -> Audit:
        """An audit that has only these counts."""
        counts: dict[str, Any] = {f"rows_with_{what}": count for what, count in self.rows.items()}
        return Audit(**counts)


def unknown_token(tokenizer: ChatTokenizer) -> tuple[int, str] | None:
    """Id and text of the token that stands for characters that the vocabulary lacks. None: there is
    no such token, or it is never used, as in vocabularies of bytes."""
    token_id, text = tokenizer.hf.unk_token_id, tokenizer.hf.unk_token
    if not isinstance(token_id, int) or not isinstance(text, str):
        return None
    is_used = all(token_id in tokenizer.encode(character) for character in _RARE)
    return (token_id, text) if is_used else None


def _trains_unknown(
    row: Conversation, examples: Sequence[TokenizedExample], token_id: int, text: str
) -> bool:
    """Whether more of these tokens are trained than the row holds as text."""
    count = sum(int(np.sum(e.loss_mask & (e.input_ids == token_id))) for e in examples)
    return count > 0 and count > sum(str(message).count(text) for message in row.messages)


def _is_empty(message: dict[str, Any]) -> bool:
    content: str = message["content"]
    if content and not content.isspace():
        return False
    return not (message.get("tool_calls") or (message.get("reasoning_content") or "").strip())


def _holds_a_place(content: str) -> bool:
    # Searching for a text is much faster than the regular expression.
    is_likely = "<" in content and any(tag in content for tag in _PLACES)
    return is_likely and _PLACEHOLDER.search(content) is not None


def _called(row: Conversation) -> set[str]:
    """The functions that a conversation calls."""
    calls = (call for message in row.messages for call in message.get("tool_calls", ()))
    return {call["function"]["name"] for call in calls}


def _listed(row: Conversation) -> set[str]:
    """The functions in the tools of a conversation."""
    tools = (tool for tool in row.tools or () if isinstance(tool, dict))
    functions = (tool.get("function", tool) for tool in tools)
    return {f["name"] for f in functions if isinstance(f, dict) and isinstance(f.get("name"), str)}
