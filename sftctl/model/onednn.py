"""Linear layers with oneDNN, a library that can be faster for float32 on a CPU than MKL.

MKL is torch's default. oneDNN compiles kernels for the vector instructions of the processor, of any
vendor, and is better on few rows. Both compute in float32, but they round differently.
"""

from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F

_SMALLEST_PRODUCT = 1 << 27
"""oneDNN is used for products of this size (in multiply-adds) or larger. For smaller products it is
not faster, because it compiles a kernel for each new shape.
"""


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a (..., I) @ b (O, I).T for any memory layout. oneDNN is used if it is faster."""
    is_float32_on_cpu = a.device.type == "cpu" and a.dtype == b.dtype == torch.float32
    if not is_float32_on_cpu or a.numel() * len(b) < _SMALLEST_PRODUCT or not _has_both():
        return a @ b.t()
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    return result


@cache
def _has_both() -> bool:
    """Whether this torch has both MKL and oneDNN. If not, torch's default is the only choice."""
    return all(backend.is_available() for backend in (torch.backends.mkl, torch.backends.mkldnn))


def use_onednn(module: torch.nn.Module) -> None:
    """Make every plain linear layer in `module` compute with `product`."""
    for layer in module.modules():
        if type(layer) is torch.nn.Linear:
            layer.forward = partial(_forward, layer)  # type: ignore[method-assign]


def _forward(layer: torch.nn.Linear, values: torch.Tensor) -> torch.Tensor:
    """`layer(values)`. Under autocast, torch chooses the dtype and the library."""
    if torch.is_autocast_enabled("cpu"):
        return F.linear(values, layer.weight, layer.bias)
    result: torch.Tensor = _Linear.apply(values, layer.weight)  # type: ignore[no-untyped-call]
    return result if layer.bias is None else result + layer.bias


class _Linear(torch.autograd.Function):
    """values (..., I) @ weight (O, I).T -> (..., O)."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        # A frozen weight needs no gradient, so its inputs are not kept.
        ctx.save_for_backward(values if ctx.needs_input_grad[1] else None, weight)
        return product(values, weight)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        values, weight = ctx.saved_tensors
        (grad_output,) = grad_outputs
        grad_values = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_values = product(grad_output, weight.t())
        if ctx.needs_input_grad[1]:
            grad_weight = product(grad_output.flatten(0, -2).t(), values.flatten(0, -2).t())
        return grad_values, grad_weight
