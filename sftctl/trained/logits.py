"""Compare the logits of two models on the same rows of token ids."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_TOKENS = 512
"""Only so many tokens of a row are compared."""


@dataclass(frozen=True, slots=True)
class LogitDifference:
    """How much the logits of two models differ."""

    rows: int
    tokens: int
    largest_difference: float  # of a single logit; NaN if a logit is NaN
    equal_greedy: float  # share of positions where both models have the same likeliest token


@torch.no_grad()
def logits_of(model: "PreTrainedModel", rows: Iterable[Sequence[int]]) -> Iterator[torch.Tensor]:
    """The logits (T, V) of each row as float32, one row at a time, in evaluation mode."""
    model.eval()
    for row in rows:
        yield model(torch.tensor([row[:MAX_TOKENS]])).logits[0].float()


def compare_logits(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> LogitDifference:
    """Compare pairs of logits (T, V). Each pair is one row, computed by the two models."""
    rows = tokens = equal = 0
    largest = torch.tensor(0.0)
    for ours, theirs in pairs:
        rows, tokens = rows + 1, tokens + len(ours)
        equal += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        largest = torch.maximum(largest, (ours - theirs).abs().max())  # Python's max drops NaN
    return LogitDifference(rows, tokens, float(largest), equal / tokens)
