"""The auxiliary loss of a mixture of experts, for each example alone.

So it does not depend on how a batch is cut into micro-batches.

Shapes: B rows, T tokens, E experts, L layers with a router.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def balance_coefficient(config: "PretrainedConfig") -> float:
    """`router_aux_loss_coef` of a model's configuration; 0 if the model has no router."""
    return float(getattr(config.get_text_config(), "router_aux_loss_coef", None) or 0.0)


def balance_loss(
    router_logits: tuple[torch.Tensor, ...],  # L of (B*T, E)
    top_k: int,
    row_lengths: torch.Tensor,  # (B,): tokens before the padding
) -> torch.Tensor:
    """`load_balancing_loss_func` of transformers, applied to each row without its padding.  (B,)

    For each row: E times the sum over experts of (share of the tokens sent to the expert) times
    (the expert's mean probability), over all layers.
    """
    rows = len(row_lengths)
    logits = torch.stack(router_logits).float()  # (L, B*T, E)
    layers, _, experts = logits.shape
    probabilities = logits.softmax(-1)
    chosen = probabilities.topk(top_k, dim=-1).indices  # (L, B*T, k)
    counts = F.one_hot(chosen, experts).sum(2)  # (L, B*T, E)
    positions = torch.arange(logits.shape[1] // rows, device=logits.device)
    real = (positions < row_lengths[:, None]).float()  # (B, T): 0 for padding

    def mean(values: torch.Tensor) -> torch.Tensor:  # (L, B*T, E) -> (B, E)
        by_row = values.float().sum(0).reshape(rows, -1, experts)  # (B, T, E)
        total: torch.Tensor = (by_row * real[..., None]).sum(1)
        return total / (layers * row_lengths[:, None])

    return experts * (mean(counts) * mean(probabilities)).sum(-1)
