"""Whether the tensors of a LoRA adapter fit its adapter_config.json. Loads no torch."""

from collections.abc import Mapping
from typing import Any

_RANK_OF_PEFT = 8  # if adapter_config.json has none


def wrong_rank(
    settings: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[str, str] | None:
    """The first matrix A that has none of the ranks in the settings, and what is wrong with it;
    None: all fit. The matrices of all experts of a layer are one tensor."""
    by_layer = settings.get("rank_pattern") or {}
    ranks = {settings.get("r") or _RANK_OF_PEFT, *by_layer.values()}
    for name, shape in shapes.items():
        if ".lora_A" in name and shape and all(shape[0] % rank for rank in ranks):
            known = " or ".join(map(str, sorted(ranks)))
            return name, f"has rank {shape[0]}, and its settings {known}"
    return None
