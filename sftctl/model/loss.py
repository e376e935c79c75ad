"""The loss, computed only where it looks.

The base model runs on whole rows; the output head only on the hidden states that predict a target,
in chunks, so that logits of shape (B, T, V) never exist.
Shapes: B rows, T tokens, D hidden size, N target tokens, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

_CHUNK_LOGITS = 1 << 24  # 64 MB of float32 logits at a time


class LossModule(torch.nn.Module):
    """The model with its loss: what DDP wraps, so nothing may call its parts from outside."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.uses_own_forward = False  # True: the head does more than a matrix product

    def forward(
        self,
        input_ids: torch.Tensor,  # (B, T)
        target_positions: torch.Tensor,  # (N,) into B*T
        target_ids: torch.Tensor,  # (N,)
    ) -> torch.Tensor:
        """The sum of the target tokens' cross entropies, a float32 scalar."""
        if self.uses_own_forward:
            logits = self.model(input_ids=input_ids, use_cache=False).logits  # (B, T, V)
            return _cross_entropy_sum(
                logits.flatten(0, 1).index_select(0, target_positions), target_ids
            )
        hidden = self.model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
        hidden = hidden.flatten(0, 1).index_select(0, target_positions)  # (N, D)
        head = self.model.get_output_embeddings()
        rows = max(1, _CHUNK_LOGITS // head.weight.shape[0])
        if len(hidden) <= rows:
            return _cross_entropy_sum(head(hidden), target_ids)
        chunks = zip(torch.split(hidden, rows), torch.split(target_ids, rows), strict=True)
        losses = [
            checkpoint(_head_loss, head, h, t, use_reentrant=False, preserve_rng_state=False)
            for h, t in chunks
        ]
        return torch.stack(losses).sum()


def _head_loss(head: Any, hidden: torch.Tensor, target_ids: torch.Tensor) -> torch.Tensor:
    return _cross_entropy_sum(head(hidden), target_ids)


def _cross_entropy_sum(logits: torch.Tensor, target_ids: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.float(), target_ids, reduction="sum")


@torch.no_grad()
def check_head(
    module: LossModule,
    input_ids: torch.Tensor,
    target_positions: torch.Tensor,
    target_ids: torch.Tensor,
) -> str | None:
    """Compare our loss with the model's own logits once; where they differ, use the latter.

    Gives None, or a sentence that says what was seen: a head with soft-capping or scaling is no
    matrix product, and then the whole forward pass of the model is run, at the price of memory.
    """
    training = module.training
    module.eval()
    ours = float(module(input_ids, target_positions, target_ids))
    module.uses_own_forward = True
    theirs = float(module(input_ids, target_positions, target_ids))
    module.train(training)
    module.uses_own_forward = abs(ours - theirs) > 1e-3 * max(1.0, abs(theirs))
    if not module.uses_own_forward:
        return None
    return (
        f"the model's head is no plain matrix product (loss {ours:.4f} against its own "
        f"{theirs:.4f}): its whole forward pass is used, which takes more memory"
    )
