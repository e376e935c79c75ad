"""Linear layers by oneDNN, whose float32 products on a CPU are faster than the ones torch picks.

torch gives float32 products to MKL; oneDNN makes code for the vector instructions that it finds, of
any vendor, and loses less on few rows. The arithmetic is float32 as before, the rounding another.
"""

from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F

_WORTH = 1 << 27
"""Multiply-adds from which oneDNN pays: for each shape that is new to it, it first makes code."""


def product(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """one (..., I) @ other (O, I).T, either of them in any layout: by oneDNN where it pays."""
    is_plain = one.device.type == "cpu" and one.dtype == other.dtype == torch.float32
    if not is_plain or one.numel() * len(other) < _WORTH or not _has_onednn():
        return one @ other.t()
    found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(one, other, None, "none", [], "")
    return found


@cache
def _has_onednn() -> bool:
    """Whether there is a choice: torch has both."""
    return all(backend.is_available() for backend in (torch.backends.mkl, torch.backends.mkldnn))


def by_onednn(module: torch.nn.Module) -> None:
    """Let every plain linear layer within `module` compute by `product`."""
    for layer in module.modules():
        if type(layer) is torch.nn.Linear:
            layer.forward = partial(_forward, layer)  # type: ignore[method-assign]


def _forward(layer: torch.nn.Linear, values: torch.Tensor) -> torch.Tensor:
    """`layer(values)`; under autocast torch chooses types, and the product too."""
    if torch.is_autocast_enabled("cpu"):
        return F.linear(values, layer.weight, layer.bias)
    found: torch.Tensor = _Linear.apply(values, layer.weight)  # type: ignore[no-untyped-call]
    return found if layer.bias is None else found + layer.bias


class _Linear(torch.autograd.Function):
    """values (..., I) @ weight (O, I).T -> (..., O)."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(values, weight)
        return product(values, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradients of both, each one more product."""
        values, weight = ctx.saved_tensors
        (of_output,) = gradients
        of_values = of_weight = None
        if ctx.needs_input_grad[0]:
            of_values = product(of_output, weight.t())
        if ctx.needs_input_grad[1]:
            of_weight = product(of_output.flatten(0, -2).t(), values.flatten(0, -2).t())
        return of_values, of_weight
