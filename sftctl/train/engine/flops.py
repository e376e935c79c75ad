"""How many operations a token costs, and how fast this machine multiplies: for the MFU shown."""

import time
from typing import Any

import torch

from sftctl.model.onednn import product

_MEASURED_S = 0.05
_SIZES = {"cpu": 1024, "cuda": 4096}  # rows and columns of the matrices


def model_flops(model: Any) -> tuple[int, int]:
    """Operations of forward and backward per token, and per target token (the head's).

    6 a parameter of a matrix (Kaplan et al. 2020); attention's own scores are left out. Zeros for a
    mixture of experts: a token meets only a part of them.
    """
    if any(getattr(model.config, name, None) for name in ("num_experts", "num_local_experts")):
        return 0, 0
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    body = sum(p.numel() for p in model.parameters() if p.ndim >= 2)
    body -= sum({id(w): w.numel() for w in (embeddings, head)}.values())
    return 6 * body, 6 * head.numel()


def matmul_flops_per_s(device: torch.device, dtype: torch.dtype) -> float:
    """The best rate of a few products in a twentieth of a second; nothing is drawn at random."""
    size = _SIZES.get(device.type, 1024)
    left = torch.full((size, size), 0.5, device=device, dtype=dtype)
    best, started = 0.0, time.perf_counter()
    while time.perf_counter() - started < _MEASURED_S:
        asked = time.perf_counter()
        product(left, left)[0, 0].item()  # waits for a GPU
        best = max(best, 2 * size**3 / (time.perf_counter() - asked))
    return best
