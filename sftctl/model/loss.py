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

from sftctl.model.moe_loss import balance_coefficient, balance_loss
from sftctl.model.onednn import product

_ENLARGED = 64  # a power of two, so that making the head smaller again gives the same bits
CHUNK_LOGITS = 1 << 23  # 32 MB of float32 logits at a time


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
        if type(head) is not torch.nn.Linear or head.bias is not None:
            return _cross_entropy_sum(head(hidden), target_ids)
        loss: torch.Tensor = _ChunkedHead.apply(
            hidden, head.weight, target_ids, torch.is_grad_enabled()
        )
        return loss


class _ChunkedHead(torch.autograd.Function):
    """Linear head and summed cross entropy; the gradient is made along with the loss, by chunks.

    So no logits are kept and none are made again (Hsu et al. 2024, Liger Kernel, has the idea).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,  # (N, D)
        weight: torch.Tensor,  # (V, D)
        target_ids: torch.Tensor,  # (N,)
        is_trained: bool,
    ) -> torch.Tensor:
        """A float32 scalar."""
        of_hidden = torch.empty_like(hidden) if is_trained else None
        of_weight = torch.zeros_like(weight) if is_trained else None
        loss = torch.zeros((), device=hidden.device)
        rows = max(1, CHUNK_LOGITS // len(weight))
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            targets = target_ids[part].unsqueeze(1)
            logits = _logits(hidden[part], weight)
            scores = logits.float().log_softmax(dim=-1)
            loss -= scores.gather(1, targets).sum()
            if of_hidden is not None and of_weight is not None:
                of_logits = scores.exp_()
                of_logits.scatter_add_(1, targets, scores.new_full(targets.shape, -1.0))
                of_logits = of_logits.to(logits.dtype)
                of_hidden[part] = product(of_logits, weight.t().to(logits.dtype))
                of_weight += product(of_logits.t(), hidden[part].t().to(logits.dtype))
        ctx.save_for_backward(of_hidden, of_weight)
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Both gradients, times that of the loss."""
        of_hidden, of_weight = ctx.saved_tensors
        return of_hidden.mul_(gradients[0]), of_weight.mul_(gradients[0]), None, None


def _logits(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """In the type that autocast asks for, if any does."""
    if torch.is_autocast_enabled(hidden.device.type):
        return F.linear(hidden, weight)
    return product(hidden, weight)


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
    A cap hardly shows in small logits, so the head is made larger meanwhile.
    """
    training, weight = module.training, module.model.get_output_embeddings().weight
    module.eval()
    inputs = (input_ids, target_positions, target_ids, row_lengths)
    weight.mul_(_ENLARGED)
    ours = float(module(*inputs))
    module.uses_own_forward = True
    theirs = float(module(*inputs))
    weight.mul_(1 / _ENLARGED)
    module.train(training)
    module.uses_own_forward = not abs(ours - theirs) <= 1e-3 * max(1.0, abs(theirs))
    if not module.uses_own_forward:
        return None
    return (
        f"the model's head is no plain matrix product (made {_ENLARGED} times as large, its loss "
        f"is {theirs:.4f}, not {ours:.4f}): its whole forward pass is used, which takes more memory"
    )
