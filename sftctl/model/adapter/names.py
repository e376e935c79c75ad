"""Check the tensors of a LoRA adapter's file against its adapter_config.json. Loads no torch.

Training, export, chat and inspect-ckpt all use these checks, which do not need the base.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from sftctl.model.adapter.ranks import wrong_rank

PREFIX = "base_model.model."
"""The beginning of each tensor's name in a file of peft. Without it, peft loads nothing."""

TWO_FILES = "the two files belong to different adapters: copy or download it again"
_SAVE_AGAIN = "save it again with save_pretrained of peft, or rename its tensors"
_OF_A_MODEL = re.compile(r"\.lora_\w+\.\w+\.weight$|\.lora_\w+\.default$")
"""A name with the name of the adapter in it, as in `q_proj.lora_A.default.weight`."""


def misfit(
    settings: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[str, str] | None:
    """How a file contradicts its settings, and what to do; None if it does not.

    `shapes` has the names of the file. The text begins with the name of a tensor or with "it".
    """
    if (wrong := _wrong_name(shapes)) is not None:
        return wrong, _SAVE_AGAIN
    for module in settings.get("modules_to_save") or ():
        if not any(f".{module}." in name for name in shapes):
            return f"it has no {module}, which modules_to_save names", TWO_FILES
    tokens = settings.get("trainable_token_indices")
    if tokens and not any("trainable_tokens" in name for name in shapes):
        return "it has no rows of tokens, which trainable_token_indices names", TWO_FILES
    if (rank := wrong_rank(settings, shapes)) is not None:
        return " ".join(rank), TWO_FILES
    return None


def _wrong_name(names: Iterable[str]) -> str | None:
    for name in names:
        if ".lora_" in name and not name.startswith(PREFIX):
            return f"{name} is not named as in a file of peft, where it begins with {PREFIX}"
        if _OF_A_MODEL.search(name):
            return f"{name} has the name that it has in a model, not in a file of peft"
    return None
