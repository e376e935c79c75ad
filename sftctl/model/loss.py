"""The loss, computed only where it looks.

The base model runs on whole rows; the output head only on the hidden states that predict a target,
in chunks, so that logits of shape (B, T, V) never exist.
A mixture of experts adds its auxiliary loss: that of each example, by itself and without padding,
weighed by its target tokens. So it is divided like the rest, and depends on no cut.
Shapes: B rows, T tokens, D hidden size, N target tokens, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from sftctl.model.router import balance_coefficient, balance_loss

CHUNK_LOGITS = 1 << 24  # 64 MB of float32 logits at a time


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
        row_lengths: torch.Tensor,  # (B,): tokens before the padding
    ) -> torch.Tensor:
        """The sum of the target tokens' cross entropies, a float32 scalar.

        In training the auxiliary loss is in its gradient, and not in its value.
        """
        balance = balance_coefficient(self.model.config) if self.training else 0.0
        called = self.model if self.uses_own_forward else self.model.base_model
        options = {"output_router_logits": True} if balance else {}
        output = called(input_ids=input_ids, use_cache=False, **options)
        if self.uses_own_forward:
            logits = output.logits.flatten(0, 1)  # (B*T, V)
            loss = _cross_entropy_sum(logits.index_select(0, target_positions), target_ids)
        else:
            hidden = output.last_hidden_state.flatten(0, 1)  # (B*T, D)
            loss = self._head_losses(hidden.index_select(0, target_positions), target_ids)
        if balance:
            top_k = self.model.config.get_text_config().num_experts_per_tok
            per_row = balance_loss(output.router_logits, top_k, row_lengths)  # (B,)
            rows = target_positions // input_ids.shape[1]  # (N,)
            auxiliary = balance * per_row.index_select(0, rows).sum()
            loss = loss + (auxiliary - auxiliary.detach())
        return loss

    def _head_losses(self, hidden: torch.Tensor, target_ids: torch.Tensor) -> torch.Tensor:
        """The head on hidden states (N, D), some rows at a time."""
        head = self.model.get_output_embeddings()
        rows = max(1, CHUNK_LOGITS // head.weight.shape[0])
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
    row_lengths: torch.Tensor,
) -> str | None:
    """Compare our loss with the model's own logits once; where they differ, use the latter.

    Gives None, or a sentence that says what was seen: a head with soft-capping or scaling is no
    matrix product, and then the whole forward pass of the model is run, at the price of memory.
    """
    training = module.training
    module.eval()
    inputs = (input_ids, target_positions, target_ids, row_lengths)
    ours = float(module(*inputs))
    module.uses_own_forward = True
    theirs = float(module(*inputs))
    module.train(training)
    module.uses_own_forward = abs(ours - theirs) > 1e-3 * max(1.0, abs(theirs))
    if not module.uses_own_forward:
        return None
    return (
        f"the model's head is no plain matrix product (loss {ours:.4f} against its own "
        f"{theirs:.4f}): its whole forward pass is used, which takes more memory"
    )
