"""The two numbers from which MFU is computed: operations per token, and the machine's speed."""

import time
from typing import TYPE_CHECKING

import torch

from sftctl.model.adapter.nf4 import num_quantized
from sftctl.model.onednn import product

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FROZEN = 4  # for one token and one frozen weight, whose own gradient is not computed
_MEASURED_S = 0.05
_SIZES = {"cpu": 1024, "cuda": 4096}  # rows and columns of the matrices


def model_flops(model: "PreTrainedModel") -> tuple[int, int]:
    """The operations of forward and backward: (body per token, head per target token).

    Each weight of a matrix counts 6 operations (Kaplan et al. 2020), or 4 if it is frozen: the
    gradient of a frozen weight is not computed. Attention scores are not counted. Returns (0, 0)
    for a mixture of experts, where a token uses only some of the parameters.
    """
    if any(getattr(model.config, name, None) for name in ("num_experts", "num_local_experts")):
        return 0, 0
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    outside = {id(embeddings), id(head)}
    body = [p for p in model.parameters() if p.ndim >= 2 and id(p) not in outside]
    return sum(map(_flops, body)) + _FROZEN * num_quantized(model), _flops(head)


def _flops(weight: torch.Tensor) -> int:
    """Operations for one token: two in the forward pass, and two for each computed gradient."""
    return (6 if weight.requires_grad else _FROZEN) * weight.numel()


def matmul_flops_per_s(
    device: torch.device, dtype: torch.dtype, seconds: float = _MEASURED_S
) -> float:
    """The speed of the fastest of several matrix products, which run for `seconds`.

    No random number is drawn.
    """
    size = _SIZES.get(device.type, 1024)
    left = torch.full((size, size), 0.5, device=device, dtype=dtype)
    best, started = 0.0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        asked = time.perf_counter()
        product(left, left)[0, 0].item()  # on a GPU, `item` waits until the product is ready
        best = max(best, 2 * size**3 / (time.perf_counter() - asked))
    return best
