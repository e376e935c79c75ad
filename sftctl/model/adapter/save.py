"""Write an adapter in peft's format, so that peft and other tools can load it."""

import copy
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sftctl.config.existing_adapter import CONFIG_NAME as CONFIG_NAME
from sftctl.config.existing_adapter import WEIGHTS_NAME as WEIGHTS_NAME
from sftctl.disk import system_errors
from sftctl.model.adapter.names import PREFIX

if TYPE_CHECKING:
    from peft import LoraConfig

_OWN = re.compile(r"\.(lora_\w+)\.default(\.\w+)?$")


def save_adapter(
    tensors: Mapping[str, torch.Tensor],
    config: "LoraConfig",
    base: str,
    revision: str | None,
    folder: Path,
) -> None:
    """Write adapter_model.safetensors and adapter_config.json.

    `tensors` are those of `saved_tensors`, complete on this rank. `base` is the name or path of the
    base.
    """
    from safetensors.torch import save_file

    written = copy.copy(config)
    written.base_model_name_or_path = base
    written.revision = revision
    written.inference_mode = True
    written.target_modules = sorted(config.target_modules or ())
    written.modules_to_save = _whole_modules(tensors, config.modules_to_save or []) or None
    written.save_pretrained(str(folder))
    named = {peft_name(name): tensor.contiguous() for name, tensor in tensors.items()}
    with system_errors():
        save_file(named, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    # adapter_config.json has the mode that the umask gives to new files.
    mode = stat.S_IMODE((folder / CONFIG_NAME).stat().st_mode)
    (folder / WEIGHTS_NAME).chmod(mode)  # safetensors lets only the owner read the file


def peft_name(name: str) -> str:
    """The name of a tensor in peft's files, for a tensor of a model with an adapter.

    `q_proj.lora_A.default.weight` -> `base_model.model.q_proj.lora_A.weight`. The norms of DoRA
    have a name that ends with `lora_magnitude_vector`.
    """
    match = _OWN.search(name)
    if match is None:
        return PREFIX + name
    end = "" if match[1] == "lora_magnitude_vector" else match[2] or ""
    return f"{PREFIX}{name[: match.start()]}.{match[1]}{end}"


def _whole_modules(tensors: Mapping[str, torch.Tensor], names: list[str]) -> list[str]:
    """The names of the modules that are saved completely, and of modules tied to them."""
    whole = [name for name in tensors if _OWN.search(name) is None]
    tied = [
        name.rpartition(".")[0].rpartition(".")[2]
        for name in whole
        if not any(f".{module}." in f".{name}" for module in names)
    ]
    return list(dict.fromkeys([*names, *tied]))
