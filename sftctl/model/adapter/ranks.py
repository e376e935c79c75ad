"""Check that the matrices of a LoRA adapter have the rank of its settings. Loads no torch."""

from collections.abc import Mapping
from typing import Any

_RANK_OF_PEFT = 8  # peft's default if adapter_config.json has no rank


def wrong_rank(
    settings: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[str, str] | None:
    """The first matrix A whose rank does not fit the settings, and what is wrong. None: all fit.

    A tensor can hold all experts of a layer. Then it has several times as many rows as the rank.
    """
    of_experts = bool(settings.get("target_parameters"))
    by_layer = settings.get("rank_pattern") or {}
    ranks = {settings.get("r") or _RANK_OF_PEFT, *by_layer.values()}
    for name, shape in shapes.items():
        if ".lora_A" not in name or not shape or shape[0] in ranks:
            continue
        if not (of_experts or ".experts" in name) or all(shape[0] % rank for rank in ranks):
            known = " or ".join(map(str, sorted(ranks)))
            return name, f"has rank {shape[0]}, and its settings {known}"
    return None
