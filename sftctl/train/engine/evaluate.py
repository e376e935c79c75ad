"""Evaluate a run on its validation sets, over all ranks.

The loss is the weighted mean over the target tokens. Accuracy and entropy are means without
weights.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sftctl.data.loading.loader import evaluation_rounds
from sftctl.data.loading.microbatch import Examples, MicroBatch
from sftctl.data.step_shape import StepShape
from sftctl.model.loss import IGNORE_INDEX
from sftctl.tracking import status
from sftctl.train.engine.exact_sum import hits_and_entropies, whole_units
from sftctl.train.engine.state import TrainState
from sftctl.train.stop import Interrupted, StopRequest
from sftctl.world import World, exact_dtype

_NUM_SUMS = 5  # losses, target tokens, weights, hits, entropies


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The results on the target tokens of one validation set, or of several."""

    sums: tuple[float, ...]  # exact, so the sums of several sets can be added

    @property
    def validation_loss(self) -> float:
        return self.sums[0] / (self.sums[2] or 1.0)

    @property
    def num_target_tokens(self) -> int:
        return int(self.sums[1])

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite if a float can't hold the number."""
        try:
            return math.exp(self.validation_loss)
        except OverflowError:
            return math.inf

    @property
    def token_accuracy(self) -> float:
        """The share of target tokens that have the highest probability of all tokens."""
        return self.sums[3] / (self.sums[1] or 1.0)

    @property
    def entropy(self) -> float:
        """The mean entropy of the model's prediction at a target token, in nats."""
        return self.sums[4] / (self.sums[1] or 1.0)

    def values(self) -> dict[str, Any]:
        """The numbers, named as in events.jsonl."""
        return {
            "loss": self.validation_loss,
            "perplexity": self.perplexity,
            "token_accuracy": self.token_accuracy,
            "entropy": self.entropy,
            "num_target_tokens": self.num_target_tokens,
        }


def of_all(evaluations: Mapping[str, Evaluation]) -> Evaluation:
    """The evaluation over the target tokens of all sets."""
    columns = zip(*(one.sums for one in evaluations.values()), strict=True)
    return Evaluation(tuple(sum(column) for column in columns))


def evaluate_sets(
    state: TrainState,
    sets: Mapping[str, Examples],
    shape: StepShape,
    world: World,
    stop: StopRequest,
) -> dict[str, Evaluation] | None:
    """Evaluate each set, in order. None if a signal comes. All ranks call this together."""
    found = {}
    for name, store in sets.items():
        evaluation = evaluate(state, store, shape, world, stop)
        if evaluation is None:
            return None
        found[name] = evaluation
    return found


@torch.no_grad()
def evaluate(
    state: TrainState, store: Examples, shape: StepShape, world: World, stop: StopRequest
) -> Evaluation | None:
    """Evaluate each example once. None if a signal comes.

    All ranks call this together, and agree before each micro-batch whether to continue. With a
    single rank, a signal also interrupts the micro-batch that is running.
    """
    totals = torch.zeros(_NUM_SUMS, dtype=exact_dtype(world.device), device=world.device)
    total_weight = _total_weight(store)
    state.loss_module.eval()
    try:
        with stop.interrupting(world):
            for num_done, batches in evaluation_rounds(store, shape):
                if stop.requested(world) is not None:
                    raise Interrupted
                status.doing(f"validating {num_done}/{len(store.lengths)}")
                for batch in batches:
                    totals += _sums(state, batch.to(world.device), world, total_weight)
    except Interrupted:
        return None
    finally:
        status.doing("")
        state.loss_module.train()
    return Evaluation(tuple(world.sum(totals).tolist()))


def _total_weight(store: Examples) -> float:
    """The number of target tokens or the sum of their weights, whichever is larger, for
    `whole_units`.
    """
    num_targets = float(store.target_lengths.sum())
    weights = store.target_weights
    return num_targets if weights is None else max(num_targets, float(weights.sum()))


def _sums(state: TrainState, batch: MicroBatch, world: World, total_weight: float) -> torch.Tensor:
    """The sums of one micro-batch, rounded by `whole_units` so that they can be added in
    any order.
    """
    with state.autocast(world.device):
        loss_sum = state.loss_module(*batch.tensors, longest_row=batch.longest_row)
    facts, weights = state.loss_module.targets, batch.target_weights
    assert facts is not None
    num_targets = (batch.target_ids != IGNORE_INDEX).sum()
    found = [loss_sum, num_targets, num_targets if weights is None else weights.sum()]
    counted = torch.stack([whole_units(one, total_weight) for one in found])
    return torch.cat([counted, hits_and_entropies(facts, batch.target_ids, total_weight)])
