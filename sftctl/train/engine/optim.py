"""AdamW, gradient clipping, and the optimizer's state by parameter name."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from sftctl.config.optim import OptimConfig
from sftctl.world import World, exact_dtype, local_part


def build_optimizer(
    named: Mapping[str, torch.nn.Parameter],
    optim: OptimConfig,
    factors: Mapping[str, float] | None = None,
) -> torch.optim.AdamW:
    """AdamW for the trained parameters. Its state exists at once, so a checkpoint can be loaded.

    Weight decay applies only to matrices. `factors` multiply the learning rate of parameters, by
    name. Each parameter group stores its factor as `lr_factor`.
    """
    trained = {name: p for name, p in named.items() if p.requires_grad}
    groups: dict[tuple[bool, float], list[torch.nn.Parameter]] = {}
    for name, parameter in trained.items():
        key = (parameter.dim() >= 2, (factors or {}).get(name, 1.0))
        groups.setdefault(key, []).append(parameter)
    optimizer = torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": optim.weight_decay if is_matrix else 0.0,
                "lr_factor": factor,
            }
            for (is_matrix, factor), parameters in groups.items()
        ],
        lr=0.0,  # set before every step
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
        fused=True,
    )
    for parameter in trained.values():
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


def clip_gradients(
    parameters: list[torch.nn.Parameter], max_norm: float, world: World
) -> torch.Tensor:
    """Scale all gradients down so that their L2 norm is at most `max_norm`.

    Returns the norm before the scaling, as a tensor on the device. A Python number would make the
    host wait for the device.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    parts = [local_part(gradient) for gradient in gradients]
    # First the norm of each row: a float32 sum of millions of squares has only 3 right digits.
    rows = torch.cat([torch.linalg.vector_norm(part, dim=-1).flatten() for part in parts])
    squares = rows.to(exact_dtype(rows.device)).square().sum()
    if any(isinstance(g, DTensor) for g in gradients):
        world.sum(squares)
    norm = squares.sqrt()
    torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm.float())
    return norm


def step_if_finite(
    optimizer: torch.optim.AdamW, facts: torch.Tensor, num_deciding: int
) -> list[float]:
    """Update the weights if the first `num_deciding` of `facts` are finite. Returns all facts.

    The device decides, by the `found_inf` that torch gave its fused optimizers for GradScaler. So
    the host enqueues the update before it waits for the facts, and the device has work meanwhile.
    Otherwise the weights and the optimizer's state stay as they are.
    """
    if facts.device.type == "mps":  # its fused AdamW has ignored `found_inf` (torch's PR 186360)
        values: list[float] = facts.tolist()
        if all(map(math.isfinite, values[:num_deciding])):
            optimizer.step()
        return values
    read = start_reading(facts)
    optimizer.found_inf = (~facts[:num_deciding].isfinite().all()).float()  # type: ignore[attr-defined]
    optimizer.step()
    del optimizer.found_inf  # type: ignore[attr-defined]
    return read()


def start_reading(tensor: torch.Tensor) -> Callable[[], list[float]]:
    """Begin to copy a tensor to the host. The result waits for the copy, and for nothing that is
    enqueued after this call.
    """
    if tensor.device.type != "cuda":
        return tensor.tolist
    on_host = torch.empty_like(tensor, device="cpu", pin_memory=True)
    on_host.copy_(tensor, non_blocking=True)
    is_copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    is_copied.record()

    def read() -> list[float]:
        is_copied.synchronize()
        values: list[float] = on_host.tolist()
        return values

    return read


class NamedOptimizer:
    """The optimizer's tensors under the names of their parameters (a `Stateful`)."""

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
        """Copy the values into the optimizer's tensors, in place."""
        with torch.no_grad():
            for key, tensor in self.state_dict().items():
                tensor.copy_(state_dict[key])
