"""The validation loss: the mean over all target tokens of a store, over all ranks."""

from dataclasses import dataclass

import torch

from sftctl.data.loader import evaluation_blocks
from sftctl.data.microbatch import Examples
from sftctl.data.step_shape import StepShape
from sftctl.train.engine.exact_sum import whole_units
from sftctl.train.engine.state import TrainState
from sftctl.train.stop import StopRequest
from sftctl.world import World


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The mean loss over all target tokens of a store."""

    validation_loss: float
    num_target_tokens: int


@torch.no_grad()
def evaluate(
    state: TrainState, store: Examples, shape: StepShape, world: World, stop: StopRequest
) -> Evaluation | None:
    """Evaluate each example once; None if a signal interrupts it.

    All ranks call it together. They agree before each block whether to go on.
    """
    state.loss_module.eval()
    totals = torch.zeros(2, dtype=torch.float64, device=world.device)  # loss sum, target tokens
    stopped = False
    for block in evaluation_blocks(store, shape):
        stopped = stop.requested(world) is not None
        if stopped:
            break
        for batch in block:
            on_device = batch.to(world.device)
            with state.autocast(world.device):
                loss_sum = state.loss_module(*on_device.tensors)
            totals[0] += whole_units(loss_sum)
            totals[1] += batch.num_target_tokens
    state.loss_module.train()
    if stopped:
        return None
    loss_sum, num_target_tokens = world.sum(totals).tolist()
    return Evaluation(loss_sum / max(1.0, num_target_tokens), int(num_target_tokens))
