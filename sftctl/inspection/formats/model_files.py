"""Models without a trainer's state: a Hugging Face or PEFT directory, a safetensors file."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from sftctl.checkpoint.tensor_index import SUFFIX, StoredTensor
from sftctl.inspection.formats.files import TORCH_SUFFIXES, Files, first_bytes
from sftctl.inspection.inspection import Inspection, weights_dtype

NO_STATE = "weights alone: no optimizer, no step"
_CONFIGS = ("config.json", "adapter_config.json")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def is_model_directory(path: Path) -> bool:
    """Whether this is a folder with a model's or adapter's configuration, or with weights."""
    names = [file.name for file in path.iterdir()] if path.is_dir() else []
    return any(name in _CONFIGS or name.endswith((SUFFIX, *TORCH_SUFFIXES)) for name in names)


def inspect_model_directory(path: Path) -> Inspection:
    """A Hugging Face model directory, or an adapter's."""
    files = Files.of(path)
    adapter = files.read_json("adapter_config.json")
    facts = model_facts(files.read_json("config.json"))
    if adapter:
        facts["config"] = {"adapter": adapter}
    tensors = read_weights(files)
    format = "PEFT adapter directory" if adapter else "Hugging Face model directory"
    return replace(
        files.inspection(format, tensors, train_advice(path)),
        facts=facts | {"dtype": facts.get("dtype") or weights_dtype(tensors)},
        obstacles=[NO_STATE],
        notes=[] if tensors else ["no weights in it"],
    )


def is_safetensors_file(path: Path) -> bool:
    """Whether the name or the first bytes (a length, then JSON) are those of safetensors."""
    return path.is_file() and (path.suffix == SUFFIX or first_bytes(path)[8:9] == b"{")


def inspect_safetensors_file(path: Path) -> Inspection:
    """One safetensors file."""
    files = Files.of(path)
    tensors = as_weights(files.read_safetensors(path.name))
    return replace(
        files.inspection("safetensors file", tensors),
        facts={"dtype": weights_dtype(tensors)},
        obstacles=[NO_STATE],
    )


def model_facts(config: dict[str, Any]) -> dict[str, Any]:
    """What config.json says."""
    dtype = config.get("dtype", config.get("torch_dtype"))
    facts: dict[str, Any] = {"dtype": dtype if isinstance(dtype, str) else None}
    if config:
        facts["config"] = {"model": config}
    if "transformers_version" in config:
        facts["versions"] = {"transformers": config["transformers_version"]}
    return facts


def train_advice(path: Path) -> str:
    """How to start a run from weights."""
    return f"`sftctl train --model {path}` starts a run from its weights"


def as_weights(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The same tensors, marked as the model's."""
    return {f"model.{name}": tensor for name, tensor in tensors.items()}


def read_weights(files: Files) -> dict[str, StoredTensor]:
    """The model's tensors: safetensors, else pytorch_model*.bin; checked against their index."""
    num_problems = len(files.problems)
    tensors: dict[str, StoredTensor] = {}
    for name in files.sizes:
        if name.endswith(SUFFIX) and "/" not in name:
            tensors |= files.read_safetensors(name)
    for name in files.sizes if not tensors else ():
        if name.endswith(".bin") and Path(name).name.startswith(("pytorch_model", "adapter_")):
            tensors |= files.read_torch(name).tensors
    is_readable = len(files.problems) == num_problems
    for index in _INDEXES:
        weight_map = files.read_json(index).get("weight_map")
        if isinstance(weight_map, dict):
            lost = sorted(set(map(str, weight_map.values())) - files.sizes.keys())
            files.problems.extend(f"{name}: missing, {index} refers to it" for name in lost)
            absent = sorted(name for name in weight_map if name not in tensors)
            if absent and is_readable and not lost:
                problem = f"{absent[0]} is in no file ({len(absent)} such tensors)"
                files.problems.append(f"{index}: {problem}")
    return as_weights(tensors)
