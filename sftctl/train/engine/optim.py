"""AdamW, gradient clipping, and the optimizer's state by parameter name."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from sftctl.config.schema import OptimConfig
from sftctl.world import World, local_part


def build_optimizer(parameters: list[torch.nn.Parameter], optim: OptimConfig) -> torch.optim.AdamW:
    """AdamW that decays only matrices; its state exists at once, so that it can be loaded into."""
    parameters = [p for p in parameters if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": optim.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=0.0,  # set before every step
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
        fused=True,
    )
    for parameter in parameters:
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


def clip_gradients(parameters: list[torch.nn.Parameter], max_norm: float, world: World) -> float:
    """Scale the gradients down to `max_norm`; returns the L2 norm before, over the whole model."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    parts = [local_part(gradient) for gradient in gradients]
    # Row by row first: one float32 sum of millions of squares is wrong in the fourth digit.
    rows = torch.cat([torch.linalg.vector_norm(part, dim=-1).flatten() for part in parts])
    squares = rows.double().square().sum()
    if any(isinstance(g, DTensor) for g in gradients):
        world.sum(squares)
    norm = squares.sqrt()
    torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm.float())
    return norm.item()


class NamedOptimizer:
    """An optimizer's tensors under the names of the parameters they belong to (a `Stateful`)."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, named: Mapping[str, torch.nn.Parameter]
    ) -> None:
        self._optimizer = optimizer
        self._named = named

    def state_dict(self) -> dict[str, Any]:
        """`<parameter>.<exp_avg|exp_avg_sq|step>`: the tensors themselves, not copies."""
        return {
            f"{name}.{key}": tensor
            for name, parameter in self._named.items()
            for key, tensor in self._optimizer.state.get(parameter, {}).items()
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Copy values into the tensors in place."""
        with torch.no_grad():
            for key, tensor in self.state_dict().items():
                tensor.copy_(state_dict[key])
