"""The mask audit: counts examples, turns and rows of a store that have something wrong."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sftctl.config.schema import TrainOn
from sftctl.data.conversations.conversation import Conversation
from sftctl.data.example import ExampleArrays
from sftctl.data.manifest import Audit
from sftctl.model.tokenizer.tokenizer import ChatTokenizer


def audit(
    examples: ExampleArrays, tokenizer: ChatTokenizer, max_seq_len: int, train_on: TrainOn
) -> Audit:
    """Audit examples as they are stored, from their arrays alone."""
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
        # With train_on=all, a run of targets covers many turns, with their ends inside it.
        turns_without_end=0 if train_on == "all" else int(np.count_nonzero(~has_end & ~is_cut)),
    )


@dataclass(slots=True)
class EmptyParts:
    """Rows whose answer to train on, or question, is empty or white space: how many, and where."""

    rows: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, row: Conversation, train_on: TrainOn) -> None:
        """Look at a row that is kept."""
        turns = row.target_turns[-1:] if train_on == "last" else row.target_turns
        if row.shape != "text" and any(_is_empty(row.messages[turn]) for turn in turns):
            self._count("empty_answer", row)
        if any(message["role"] == "user" and _is_empty(message) for message in row.messages):
            self._count("empty_question", row)

    def _count(self, part: str, row: Conversation) -> None:
        self.rows[part] += 1
        self.first.setdefault(part, str(row.source))

    def audit(self) -> Audit:
        """An audit with these counts alone."""
        return Audit(
            rows_with_empty_answer=self.rows["empty_answer"],
            rows_with_empty_question=self.rows["empty_question"],
        )


def _is_empty(message: dict[str, Any]) -> bool:
    content: str = message["content"]
    has_more = message.get("tool_calls") or (message.get("reasoning_content") or "").strip()
    return not content.strip() and not has_more
