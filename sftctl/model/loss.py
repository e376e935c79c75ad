"""The summed cross entropy of a model's target tokens, without the logits of all tokens.

If the tokens have weights, each target's cross entropy is multiplied by its weight.

The base model runs on all tokens of a micro-batch. The output head runs only on the hidden states
that predict a target token, one chunk after the other. So logits of shape (T, V) never exist.

For a mixture of experts, the auxiliary loss is added. It is computed for each example alone and
multiplied by the example's number of target tokens. So it is normalized like the cross entropy, and
does not depend on how a batch is divided into micro-batches.

Shapes: T tokens, R rows, D hidden size, N target tokens, V vocabulary.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
import torch.nn.functional as F

from sftctl.model.folder.computable import backbone
from sftctl.model.moe_loss import balance_coefficient, balance_loss, row_numbers
from sftctl.model.onednn import product

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHUNK_LOGITS = 1 << 23  # the number of logits in one chunk: 32 MB of float32
IGNORE_INDEX = -100  # marks a position without a target; the loss does not count it
_ROWS_STEP = 128  # the number of targets in a chunk is a multiple of this, so few shapes occur
_BLOCK = 128  # of tokens in which the highest logit is looked for
_HEAD_SCALE = 64  # a power of two, so that a product with 1/64 restores all bits


class TargetFacts(NamedTuple):
    """Facts about each of N target positions, detached. Positions that only fill up have no
    meaning.
    """

    losses: torch.Tensor  # (N,) float32: cross entropy without the weight; 0 without a target
    are_hits: torch.Tensor  # (N,) bool: the target is the token that greedy decoding would choose
    entropies: torch.Tensor  # (N,) float32: of the distribution over the vocabulary, in nats

    @classmethod
    def of(cls, logits: torch.Tensor, target_ids: torch.Tensor, each: torch.Tensor) -> Self:
        """The facts from logits (N, V) and cross entropies (N,)."""
        logits = logits.detach()
        return cls(each.detach(), _most_probable(logits) == target_ids, _entropies(logits))


class LossModule(torch.nn.Module):
    """A model with its loss. FSDP hooks into this module, so call it and not the model inside."""

    def __init__(self, model: "PreTrainedModel", chunk_logits: int = CHUNK_LOGITS) -> None:
        super().__init__()
        self.model = model
        self.chunk_logits = chunk_logits
        self.uses_own_forward = False  # True: call the model's own forward, with all logits
        # True: the model uses row_attention, so a pass can have several rows.
        self.attends_by_rows = False
        # The float32 master of a bfloat16 head: it gets the head's gradient in float32. Else None.
        self.head_weight: torch.Tensor | None = None
        self.targets: TargetFacts | None = None  # facts of the last call

    def forward(
        self,
        input_ids: torch.Tensor,  # (1, T)
        position_ids: torch.Tensor,  # (1, T)
        target_positions: torch.Tensor,  # (N,) into T
        target_ids: torch.Tensor,  # (N,); IGNORE_INDEX where there is no target
        row_lengths: torch.Tensor,  # (R,): the tokens of each row, then zeros
        target_weights: torch.Tensor | None = None,  # (N,) float32, 0 without a target; None: all 1
        *,
        longest_row: int | None = None,  # an upper bound of the row lengths; None: unknown
    ) -> torch.Tensor:
        """The weighted sum of the target tokens' cross entropies, a float32 scalar.

        In training mode, the auxiliary loss changes the gradient, but not the returned value.
        """
        balance = balance_coefficient(self.model.config) if self.training else 0.0
        called = self.model if self.uses_own_forward else backbone(self.model)
        options: dict[str, Any] = {"output_router_logits": True} if balance else {}
        if self.attends_by_rows:
            options |= {"position_ids": position_ids, "row_lengths": row_lengths}
            options["longest_row"] = longest_row
        output = called(input_ids=input_ids, use_cache=False, **options)
        if self.uses_own_forward:
            logits = output.logits.flatten(0, 1)  # (T, V)
            logits = logits.index_select(0, target_positions)
            each = _cross_entropy(logits, target_ids)
            loss = _weighted_sum(each, target_weights)
            self.targets = TargetFacts.of(logits, target_ids, each)
        else:
            hidden = output.last_hidden_state.flatten(0, 1)  # (T, D)
            hidden = hidden.index_select(0, target_positions)
            loss, self.targets = self._head_loss(hidden, target_ids, target_weights)
        if balance and output.router_logits:  # a configuration may leave no layer with a router
            top_k = self.model.config.get_text_config().num_experts_per_tok
            row_of = row_numbers(row_lengths, input_ids.shape[1])  # (T,)
            per_row = balance_loss(output.router_logits, top_k, row_lengths, row_of)  # (R,)
            rows = row_of.index_select(0, target_positions)  # (N,)
            per_target = per_row.index_select(0, rows) * (target_ids != IGNORE_INDEX)
            auxiliary = balance * _weighted_sum(per_target, target_weights)
            loss = loss + (auxiliary - auxiliary.detach())
        return loss

    def _head_loss(
        self, hidden: torch.Tensor, target_ids: torch.Tensor, target_weights: torch.Tensor | None
    ) -> tuple[torch.Tensor, TargetFacts]:
        """The loss of hidden states (N, D). A head that is a plain matrix is applied in chunks."""
        head = self.model.get_output_embeddings()
        if type(head) is not torch.nn.Linear or head.bias is not None:
            logits = head(hidden)
            each = _cross_entropy(logits, target_ids)
            return _weighted_sum(each, target_weights), TargetFacts.of(logits, target_ids, each)
        weight = head.weight if self.head_weight is None else self.head_weight
        loss, *facts = _ChunkedHead.apply(
            hidden, weight, target_ids, target_weights, self.chunk_logits, torch.is_grad_enabled()
        )
        return loss, TargetFacts(*facts)


class _ChunkedHead(torch.autograd.Function):
    """A linear head and the summed cross entropy. The forward pass also computes the gradients.

    So no logits are kept, and no logits are computed twice (the idea of Liger Kernel, Hsu et al.
    2024).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,  # (N, D)
        weight: torch.Tensor,  # (V, D)
        target_ids: torch.Tensor,  # (N,)
        target_weights: torch.Tensor | None,  # (N,)
        chunk_logits: int,
        needs_grad: bool,
    ) -> tuple[torch.Tensor, ...]:
        """Returns the loss, a float32 scalar, and the tensors of TargetFacts."""
        # A frozen head needs no gradient. The hidden states need none if every weight below
        # the head is frozen.
        needs_hidden, needs_weight = (needs_grad and needed for needed in ctx.needs_input_grad[:2])
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        dtype = hidden.dtype
        if torch.is_autocast_enabled(hidden.device.type):
            dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        loss = torch.zeros((), device=hidden.device)
        each = torch.empty(len(hidden), device=hidden.device)
        are_hits = torch.empty(len(hidden), dtype=torch.bool, device=hidden.device)
        entropies = torch.empty(len(hidden), device=hidden.device)
        rows = chunk_rows(len(weight), chunk_logits)
        for start in range(0, len(hidden), rows):
            chunk = slice(start, start + rows)
            is_target = target_ids[chunk].unsqueeze(1) != IGNORE_INDEX  # (n, 1)
            factors = is_target if target_weights is None else target_weights[chunk].unsqueeze(1)
            targets = target_ids[chunk].unsqueeze(1).clamp_min(0)
            logits = product(hidden[chunk], weight).float()
            log_probabilities = logits.log_softmax(dim=-1)
            of_targets = log_probabilities.gather(1, targets)
            loss -= (of_targets * factors).sum()
            each[chunk] = -(of_targets * is_target).squeeze(1)
            are_hits[chunk] = _most_probable(logits) == target_ids[chunk]
            log_sum = (logits.gather(1, targets) - of_targets).squeeze(1)
            probabilities = log_probabilities.exp_()
            # `mul_` works in place, so no further matrix is allocated.
            entropies[chunk] = log_sum - logits.mul_(probabilities).sum(1)
            if needs_hidden or needs_weight:
                # The gradient: the probabilities minus the one-hot targets.
                grad_logits = probabilities
                grad_logits.scatter_add_(1, targets, grad_logits.new_full(targets.shape, -1.0))
                grad_logits = grad_logits.mul_(factors).to(dtype)
            if grad_hidden is not None:
                grad_hidden[chunk] = product(grad_logits, weight.t())
            if grad_weight is not None:
                grad_weight += product(grad_logits.t(), hidden[chunk].t())
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.mark_non_differentiable(each, are_hits, entropies)
        return loss, each, are_hits, entropies

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Multiply both gradients in place by the gradient of the loss."""
        grad_hidden, grad_weight = ctx.saved_tensors
        grad_loss = grad_outputs[0]
        gradients = (None if g is None else g.mul_(grad_loss) for g in (grad_hidden, grad_weight))
        return *gradients, None, None, None, None


def chunk_rows(vocabulary: int, chunk_logits: int = CHUNK_LOGITS) -> int:
    """The number of target tokens in a chunk of logits: a multiple of 128, and at least 128."""
    return max(_ROWS_STEP, chunk_logits // vocabulary // _ROWS_STEP * _ROWS_STEP)


def _most_probable(logits: torch.Tensor) -> torch.Tensor:
    """The token with the highest logit in each row of (N, V): (N,). Of equal ones, the first.

    On a CPU, `argmax` of a long row takes several times as long as `amax`. So this takes the
    maxima of blocks first.
    """
    num_rows, vocabulary = logits.shape
    if vocabulary % _BLOCK:
        return logits.argmax(1)
    blocks: torch.Tensor = logits.unflatten(1, (-1, _BLOCK))  # type: ignore[no-untyped-call]
    block = blocks.amax(2).argmax(1)
    inside = blocks[torch.arange(num_rows, device=logits.device), block].argmax(1)
    return block * _BLOCK + inside


def _entropies(logits: torch.Tensor) -> torch.Tensor:
    """The entropy of each row of logits (N, V), in nats: (N,)."""
    log_probabilities = logits.float().log_softmax(dim=-1)
    return -(log_probabilities.exp() * log_probabilities).sum(1)


def _cross_entropy(logits: torch.Tensor, target_ids: torch.Tensor) -> torch.Tensor:
    """Each target's cross entropy: (N,)."""
    return F.cross_entropy(logits.float(), target_ids, reduction="none", ignore_index=IGNORE_INDEX)


def _weighted_sum(each: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    return each.sum() if weights is None else (each * weights).sum()


@dataclass(frozen=True, slots=True)
class HeadCheck:
    """Two losses of the same batch, computed with an enlarged head."""

    loss: float  # computed with the head's weight alone
    own_loss: float  # computed with the model's own forward pass

    @property
    def is_plain(self) -> bool:
        """Whether both losses agree. Then the head is only a matrix product."""
        return abs(self.loss - self.own_loss) <= 1e-3 * max(1.0, abs(self.own_loss))

    @property
    def warning(self) -> str:
        return (
            "the model's head does more than multiply by its weight: the complete forward pass is "
            "used, which takes more memory (in a test with a larger weight the loss is "
            f"{self.own_loss:.4f}, not {self.loss:.4f})"
        )


@torch.no_grad()
def check_head(module: LossModule, tensors: tuple[torch.Tensor, ...]) -> HeadCheck:
    """Compute two losses of one micro-batch: by the head's weight, and by the model's own logits.

    They differ if the model also caps or scales its logits. A cap hardly changes small logits. So
    the head's weights are multiplied by 64 for the comparison, and restored afterwards.
    """
    training, uses_own_forward = module.training, module.uses_own_forward
    weights = [module.model.get_output_embeddings().weight]
    if module.head_weight is not None and module.head_weight is not weights[0]:
        weights.append(module.head_weight)  # the float32 master of a bfloat16 head
    module.eval()
    torch._foreach_mul_(weights, _HEAD_SCALE)
    try:
        module.uses_own_forward = False
        loss = float(module(*tensors))
        module.uses_own_forward = True
        own_loss = float(module(*tensors))
    finally:
        torch._foreach_mul_(weights, 1 / _HEAD_SCALE)
        module.uses_own_forward = uses_own_forward
        module.train(training)
    return HeadCheck(loss, own_loss)
