"""Adapters and models as PEFT, Unsloth and MLX write them."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from sftctl import jsonio


def save_adapter(
    folder: Path, base: str = "owner/base", card: str | None = None, **values: Any
) -> Path:
    """An adapter's folder, as `PeftModel.save_pretrained` writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    if card is not None:
        (folder / "README.md").write_text(card)
    config = {
        "base_model_name_or_path": base, "peft_type": "LORA", "task_type": "CAUSAL_LM",
        "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"],
    }  # fmt: skip
    (folder / "adapter_config.json").write_bytes(jsonio.dump_line({**config, **values}))
    place = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {
        f"{place}.lora_A.weight": torch.ones(4, 16),
        f"{place}.lora_B.weight": torch.ones(16, 4),
    }
    if values.get("use_dora"):
        tensors[f"{place}.lora_magnitude_vector"] = torch.ones(16)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def save_mlx_adapter(folder: Path) -> Path:
    """What `mlx_lm.lora` writes."""
    folder.mkdir(parents=True)
    config = {
        "model": "mlx-community/base-4bit", "fine_tune_type": "lora", "num_layers": 16,
        "lora_parameters": {"rank": 8, "scale": 20.0, "dropout": 0.0}, "iters": 200,
    }  # fmt: skip
    (folder / "adapter_config.json").write_bytes(jsonio.dump_line(config))
    place = "model.layers.0.self_attn.q_proj"
    tensors = {f"{place}.lora_a": torch.ones(16, 8), f"{place}.lora_b": torch.ones(8, 16)}
    for name in ("adapters.safetensors", "0000100_adapters.safetensors"):
        save_file(tensors, folder / name)
    return folder


def save_mlx_model(folder: Path, model: Any, *, quantized: bool) -> Path:
    """A model that `mlx_lm.convert` wrote."""
    model.config.save_pretrained(folder)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    config = jsonio.loads((folder / "config.json").read_bytes())
    if quantized:
        config["quantization"] = {"group_size": 64, "bits": 4}
        packed = {}
        for name, tensor in tensors.items():
            if name.endswith("_proj.weight"):
                stem = name.removesuffix(".weight")
                packed[name] = torch.zeros(tensor.shape[0], 2, dtype=torch.uint32)
                packed[f"{stem}.scales"] = packed[f"{stem}.biases"] = torch.ones(tensor.shape[0], 1)
            else:
                packed[name] = tensor
        tensors = {name: tensor.clone() for name, tensor in packed.items()}
    (folder / "config.json").write_bytes(jsonio.dump_line(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "mlx"})
    return folder
