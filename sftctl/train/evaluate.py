"""Validation loss: over the whole part, weighted by target tokens, over all ranks."""

from dataclasses import dataclass

import torch

from sftctl.data.loader import Examples, StepShape, evaluation_batches
from sftctl.train.exact import whole_units
from sftctl.train.state import TrainState
from sftctl.world import World


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The mean loss over all target tokens of a store."""

    validation_loss: float
    num_target_tokens: int


@torch.no_grad()
def evaluate(state: TrainState, store: Examples, shape: StepShape, world: World) -> Evaluation:
    """Each example once, in evaluation mode."""
    state.loss_module.eval()
    totals = torch.zeros(2, dtype=torch.float64, device=world.device)  # loss sum, target tokens
    for batch in evaluation_batches(store, shape):
        batch = batch.to(world.device)
        with state.autocast(world.device):
            loss_sum = state.loss_module(batch.input_ids, batch.target_positions, batch.target_ids)
        totals[0] += whole_units(loss_sum)
        totals[1] += len(batch.target_ids)
    state.loss_module.train()
    loss_sum, num_target_tokens = world.sum(totals).tolist()
    return Evaluation(loss_sum / max(1.0, num_target_tokens), int(num_target_tokens))
