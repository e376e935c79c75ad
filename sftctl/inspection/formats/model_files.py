"""Models without the state of a trainer: a directory (Hugging Face, MLX, peft) or one file."""

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from sftctl.checkpoint.tensor_index import SUFFIX, StoredTensor
from sftctl.errors import ConfigError
from sftctl.inspection.formats.adapters import (
    adapter_facts,
    adapter_kind,
    card_of,
    judge_adapter,
    kind_without_settings,
)
from sftctl.inspection.formats.files import TORCH_SUFFIXES, Files, first_bytes
from sftctl.inspection.formats.others import weights_of_others
from sftctl.inspection.formats.weights import judge_weights, quantized_dtype, show_tensors
from sftctl.inspection.inspection import NO_TENSORS, Inspection, weights_dtype
from sftctl.inspection.pickles.values import table
from sftctl.model.folder.read_files import files_read, index_of, require_single_tensors

NO_STATE = "only weights: no optimizer, no step"
STEP_COUNTS = "optimizer updates"
_CONFIGS = ("config.json", "adapter_config.json")
_MOST_SHOWN = 10  # missing files that are named
_SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)(\.safetensors|\.bin)")
_MOST_SHARDS = 10_000
_LONGEST_METADATA = 1 << 20
_FORMAT = re.compile(rb'"__metadata__":\s*\{[^}]*"format":\s*"(\w+)"')
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def is_model_directory(path: Path) -> bool:
    """Whether this folder has weights, or the configuration of a model or an adapter."""
    names = [file.name for file in path.iterdir()] if path.is_dir() else []
    endings = (SUFFIX, *TORCH_SUFFIXES, ".npz")
    return any(name in _CONFIGS or name.endswith(endings) for name in names)


def inspect_model_directory(path: Path) -> Inspection:
    """A model directory of Hugging Face or MLX, or the directory of an adapter."""
    files = Files.of(path)
    adapter, config = files.read_json("adapter_config.json"), files.read_json("config.json")
    facts, card, not_described = model_facts(config), "", None
    tensors = read_weights(files)
    files.problems.extend(lost_shards(files) or _lost_index(files))
    if adapter:
        card = card_of(files)
        facts |= adapter_facts(adapter, card)
        problems, notes, advice = _judge_adapter(files, adapter, tensors)
    elif not_described := kind_without_settings(files, tensors):
        problems, notes, advice = [], [], None
    else:
        problems, notes, advice = judge_weights(files, config, tensors)
    files.problems.extend(problems)
    kind = not_described or _model_kind(files, config, tensors)
    if not tensors and not adapter and (others := weights_of_others(files)):
        kind, problem = others
        files.problems.append(problem)
    found = files.inspection(adapter_kind(adapter, card) if adapter else kind, tensors, advice)
    return replace(
        found,
        facts=facts | {"dtype": facts.get("dtype") or weights_dtype(tensors)},
        step_counts=STEP_COUNTS if facts.get("step") is not None else None,
        complete=found.complete and bool(tensors),
        obstacles=[NO_STATE],
        notes=notes,
    )


def lost_shards(files: Files) -> list[str]:
    """The missing parts of a model, derived from names such as `x-00001-of-00003`."""
    lost = []
    for match in filter(None, map(_SHARD.fullmatch, files.sizes)):
        digits, count = len(match[2]), min(int(match[3]), _MOST_SHARDS)
        for number in range(1, count + 1):
            name = f"{match[1]}-{number:0{digits}d}-of-{match[3]}{match[4]}"
            if name not in files.sizes:
                lost.append(f"{name}: missing")
    # The index has reported these files.
    known = {problem.partition(":")[0] for problem in files.problems}
    return [one for one in sorted({*lost}) if one.partition(":")[0] not in known]


def _lost_index(files: Files) -> list[str]:
    """A problem if the index file is missing, because weights in several files need it."""
    endings = {m[4] for name in files.sizes if (m := _SHARD.fullmatch(name))}
    names = {".safetensors": _INDEXES[0], ".bin": _INDEXES[1]}
    wanted = [names[ending] for ending in sorted(endings)]
    return [f"{name}: missing" for name in wanted if name not in files.sizes]


def _model_kind(files: Files, config: dict[str, Any], tensors: dict[str, StoredTensor]) -> str:
    """The name of the format: the tool that wrote the directory, and how it is quantized."""
    described = config.get("quantization_config") or config.get("compression_config")
    is_mlx = "quantization" in config or "weights.npz" in files.sizes or _is_mlx(files)
    who = "MLX model directory" if is_mlx else "Hugging Face model directory"
    if "quantization" in config:
        bits = table(config["quantization"]).get("bits")
        return f"{who}, quantized to {bits} bits" if bits else f"{who}, quantized"
    if described:
        method = table(described).get("quant_method", "an unnamed method")
        return f"{who}, quantized by {method}"
    if (dtype := quantized_dtype(tensors)) is not None:
        return f"{who}, quantized ({dtype})"
    return who


def _is_mlx(files: Files) -> bool:
    """Whether a safetensors file says that MLX wrote it."""
    names = [name for name in files.sizes if name.endswith(SUFFIX)]
    return any(header_format(files.path / name) == "mlx" for name in names[:1])


def header_format(file: Path) -> str | None:
    """The value of `format` in the metadata of a safetensors file; None if there is none."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        head = stream.read(min(length, _LONGEST_METADATA))
    match = _FORMAT.search(head)
    return match[1].decode() if match else None


def _judge_adapter(
    files: Files, adapter: dict[str, Any], tensors: dict[str, StoredTensor]
) -> tuple[list[str], list[str], str | None]:
    """(problems, notes, advice) for the directory of an adapter."""
    problems, note = judge_adapter(files, adapter, tensors)
    if tensors:
        return problems, [note], show_tensors(files.path)
    file = "adapter_model.safetensors"
    if file not in files.sizes and not files.problems:
        has_other = "adapter_model.bin" in files.sizes
        problems.append(f"adapter_model.bin: {NO_TENSORS}" if has_other else f"{file}: missing")
    return problems, [note], None


def is_safetensors_file(path: Path) -> bool:
    """Whether this is a safetensors file, by its name or its first bytes (a length, then JSON)."""
    return path.is_file() and (path.suffix == SUFFIX or first_bytes(path)[8:9] == b"{")


def inspect_safetensors_file(path: Path) -> Inspection:
    """A single safetensors file."""
    files = Files.of(path)
    tensors = as_weights(files.read_safetensors(path.name))
    return replace(
        files.inspection("safetensors file", tensors),
        facts={"dtype": weights_dtype(tensors)},
        obstacles=[NO_STATE],
    )


def model_facts(config: dict[str, Any]) -> dict[str, Any]:
    """The facts that config.json gives."""
    dtype = config.get("dtype", config.get("torch_dtype"))
    facts: dict[str, Any] = {"dtype": dtype if isinstance(dtype, str) else None}
    if config:
        facts["config"] = {"model": config}
    if "transformers_version" in config:
        facts["versions"] = {"transformers": config["transformers_version"]}
    return facts


def as_weights(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The same tensors with names under `model.`."""
    return {f"model.{name}": tensor for name, tensor in tensors.items()}


def read_weights(files: Files) -> dict[str, StoredTensor]:
    """The model's tensors, from safetensors files or else from pytorch_model*.bin.

    The index is compared with them.
    """
    num_problems, folder = len(files.problems), files.path
    tensors: dict[str, StoredTensor] = {}
    loaded = [os.path.relpath(file, folder) for file in files_read(folder)]
    names = [*loaded, *(name for name in files.sizes if _is_other(name, loaded))]
    for name in names:
        if name.endswith(SUFFIX):
            tensors |= files.read_safetensors(name)
    for name in names if not tensors else ():
        if name.endswith(".bin") and Path(name).name.startswith(("pytorch_model", "adapter_")):
            tensors |= files.read_torch(name).tensors
    is_readable = len(files.problems) == num_problems and not files.pointers
    if (index := index_of(folder)) is not None:
        files.problems.extend(_problems_of_index(files, index.name, tensors, is_readable))
    try:
        if is_readable:
            require_single_tensors(str(folder), folder)
    except ConfigError as error:
        problem = error.message.removeprefix(f"model {folder}: ")
        files.problems.append(problem)
        files.remedies[problem] = error.hint or ""
    return as_weights(tensors)


def _is_other(name: str, loaded: list[str]) -> bool:
    """Whether the tensors of a file are shown, although transformers does not load the file.

    True for the file of an adapter. If transformers loads no file at all, true for all files.
    """
    is_adapter = Path(name).name.startswith("adapter_")
    is_below = "/" in name and name.endswith(SUFFIX)
    return not is_below and name not in loaded and (is_adapter or not loaded)


def _problems_of_index(
    files: Files, index: str, tensors: dict[str, StoredTensor], is_readable: bool
) -> list[str]:
    """A problem for each file in the index that does not exist. Else for tensors that are in no
    file.
    """
    weight_map = files.read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        return [f"{index}: no weight_map in it"]
    named = sorted(set(map(str, weight_map.values())))
    lost = [name for name in named if not (files.path / name).is_file()]
    if lost:
        shown = [f"{name}: missing, {index} refers to it" for name in lost[:_MOST_SHOWN]]
        more = [f"{len(lost) - len(shown)} more files are missing"]
        return shown + (more if len(lost) > len(shown) else [])
    absent = sorted(name for name in weight_map if name not in tensors)
    if absent and is_readable:
        return [f"{index}: {absent[0]} is in no file ({len(absent)} such tensors)"]
    return []
