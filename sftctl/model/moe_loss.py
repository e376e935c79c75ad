"""The auxiliary loss of a mixture of experts, computed for each example alone.

So it does not depend on how a batch is divided into micro-batches.
Shapes: R rows laid end to end, T tokens, E experts, L layers with a router.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def balance_coefficient(config: "PretrainedConfig") -> float:
    """`router_aux_loss_coef` of a model's configuration; 0 if the model has no router."""
    return float(getattr(config.get_text_config(), "router_aux_loss_coef", None) or 0.0)


def row_numbers(row_lengths: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """For each token the number of its row: (T,) int64. The rows are laid end to end."""
    rows = torch.arange(len(row_lengths), device=row_lengths.device)
    return rows.repeat_interleave(row_lengths, output_size=num_tokens)


def balance_loss(
    router_logits: tuple[torch.Tensor, ...],  # L of (T, E)
    top_k: int,
    row_lengths: torch.Tensor,  # (R,): tokens of each row, then zeros
    row_of: torch.Tensor,  # (T,): the row of each token
) -> torch.Tensor:
    """`load_balancing_loss_func` of transformers, applied to each row: (R,). 0 for an empty row.

    The loss of a row is E times a sum over experts. The term of an expert is the share of the row's
    tokens that it receives, times its mean probability. Both are means over all layers.
    """
    logits = torch.stack(router_logits).float()  # (L, T, E)
    layers, _, experts = logits.shape
    probabilities = logits.softmax(-1)
    chosen = probabilities.topk(top_k, dim=-1).indices  # (L, T, k)
    counts = F.one_hot(chosen, experts).sum(2)  # (L, T, E)
    tokens = (layers * row_lengths).clamp_min(1)[:, None]  # (R, 1)

    def mean(values: torch.Tensor) -> torch.Tensor:  # (L, T, E) -> (R, E)
        by_token = values.float().sum(0)  # (T, E)
        totals = by_token.new_zeros(len(row_lengths), experts)
        return totals.index_add(0, row_of, by_token) / tokens

    return experts * (mean(counts) * mean(probabilities)).sum(-1)
