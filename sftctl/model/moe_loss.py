"""The auxiliary loss of a mixture of experts: each example's own, so that no cut changes it.

Shapes: B rows, T tokens, E experts, L layers with a router.
"""

from typing import Any

import torch
import torch.nn.functional as F


def balance_coefficient(config: Any) -> float:
    """`router_aux_loss_coef` of a model's configuration; 0 where it has no router."""
    return float(getattr(config.get_text_config(), "router_aux_loss_coef", None) or 0.0)


def balance_loss(
    router_logits: tuple[torch.Tensor, ...],  # L of (B*T, E)
    top_k: int,
    row_lengths: torch.Tensor,  # (B,): tokens before the padding
) -> torch.Tensor:
    """For each row E times the sum over experts of (share of tokens sent there) x (mean
    probability), over the row's own tokens in all layers: `load_balancing_loss_func` of
    transformers, as it is for that row alone.  (B,)
    """
    rows = len(row_lengths)
    logits = torch.stack(router_logits).float()  # (L, B*T, E)
    layers, _, experts = logits.shape
    probabilities = logits.softmax(-1)
    chosen = probabilities.topk(top_k, dim=-1).indices  # (L, B*T, k)
    counts = F.one_hot(chosen, experts).sum(2)  # (L, B*T, E)
    tokens = torch.arange(logits.shape[1] // rows, device=logits.device)
    real = (tokens < row_lengths[:, None]).float()  # (B, T)

    def mean(values: torch.Tensor) -> torch.Tensor:  # (L, B*T, E) -> (B, E)
        by_row = values.float().sum(0).reshape(rows, -1, experts)  # (B, T, E)
        total: torch.Tensor = (by_row * real[..., None]).sum(1)
        return total / (layers * row_lengths[:, None])

    return experts * (mean(counts) * mean(probabilities)).sum(-1)
