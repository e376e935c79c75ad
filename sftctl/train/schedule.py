"""The learning rate as a pure function of the step; nothing here loads torch."""

import math

from sftctl.config.schema import OptimConfig


def get_lr(step: int, total_steps: int, optim: OptimConfig) -> float:
    """The learning rate of update number `step`, 1 to `total_steps`.

    Linear warm-up over `warmup_steps`, then half a cosine from the peak down to `min_lr_ratio` of
    it, reached at the last step. Without warm-up this is MiniMind's
    `lr * (0.1 + 0.45 * (1 + cos(pi * step / total)))`.
    """
    peak, floor = float(optim.learning_rate), optim.min_lr_ratio
    if step < optim.warmup_steps:
        return peak * step / optim.warmup_steps
    share = (step - optim.warmup_steps) / max(1, total_steps - optim.warmup_steps)
    return peak * (floor + (1 - floor) / 2 * (1 + math.cos(math.pi * min(1.0, share))))
