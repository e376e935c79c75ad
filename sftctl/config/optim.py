"""OptimConfig: AdamW and its learning rate."""

from dataclasses import dataclass
from typing import Any, Literal

from sftctl.config.bounds import Amount, CountFrom0, PartOfOne, Share, check_factors


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """AdamW and its learning rate."""

    learning_rate: Amount | Literal["auto"] = "auto"
    """Peak learning rate. auto: 1e-3 for a preset (random weights), 2e-5 for pretrained weights,
    2e-4 for a LoRA adapter (ten times 2e-5: Schulman et al. 2025, LoRA Without Regret)."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up: as half a cosine, linearly, or not at all."""
    warmup_steps: CountFrom0 = 0
    """Steps of linear warm-up before the schedule."""
    min_lr_ratio: Share = 0.1
    """At the end of the cosine and linear schedules, the learning rate is this fraction of
    `learning_rate`; from 0 to 1."""
    weight_decay: Amount = 0.01
    """Decoupled weight decay, only on matrices (not on norms and biases)."""
    beta1: PartOfOne = 0.9
    """Decay of AdamW's first moment."""
    beta2: PartOfOne = 0.999
    """Decay of AdamW's second moment."""
    eps: Amount = 1e-8
    """AdamW's epsilon: it is added to the denominator."""
    grad_clip: Amount = 1.0
    """Maximum gradient norm (L2 over all trained parameters). 0: no clipping."""
    groups: dict[str, Any] | None = None
    """Factors of the learning rate for some parameters: pattern = factor, in [optim.groups]. The
    patterns are written as in `train.freeze`. All other parameters have the factor 1."""

    def __post_init__(self) -> None:
        check_factors(self.groups or {})
