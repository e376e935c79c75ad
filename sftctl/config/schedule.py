"""The learning rate as a function of the step. Does not import torch."""

import math

from sftctl.config.optim import OptimConfig


def get_lr(step: int, total_steps: int, optim: OptimConfig) -> float:
    """The learning rate of update `step`, from 1 to `total_steps`.

    The rate rises linearly over `warmup_steps`. Then it stays constant, or falls to `min_lr_ratio`
    times the peak at the last step, linearly or as half a cosine. Without warm-up, the cosine is
    MiniMind's `lr * (0.1 + 0.45 * (1 + cos(pi * step / total)))`.
    """
    peak, floor = float(optim.learning_rate), optim.min_lr_ratio
    if step < optim.warmup_steps:
        return peak * step / optim.warmup_steps
    share = min(1.0, (step - optim.warmup_steps) / max(1, total_steps - optim.warmup_steps))
    left = {
        "cosine": (1 + math.cos(math.pi * share)) / 2,
        "linear": 1 - share,
        "constant": 1.0,
    }[optim.schedule]
    return peak * (floor + (1 - floor) * left)
