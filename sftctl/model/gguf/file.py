"""Parts of a .gguf file that transformers does not read: sizes in its metadata, and some
tensors.
"""

import struct
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftctl.model.gguf.kind import require_model, split_in
from sftctl.model.gguf.tokenizer_keys import MERGES, tokenizer_fault

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_ARCHITECTURES = {  # name in transformers -> name in llama.cpp, if the two differ
    "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe", "gemma3_text": "gemma3", "mistral": "llama",
}  # fmt: skip
_DAMAGE = (ValueError, KeyError, IndexError, TypeError, OverflowError, struct.error)
_HEADS_OF_ALL = ("llama", "mistral", "qwen3", "qwen3_moe")
_EXPERTS = {  # our tensor of stacked experts -> the tensors in the file
    "gate_up_proj": ("ffn_gate_exps.weight", "ffn_up_exps.weight"),
    "down_proj": ("ffn_down_exps.weight",),
}


def require_whole_model(file: Path) -> None:
    """ConfigError for an adapter, and for a part of a model.

    Other damage is found by transformers.
    """
    try:
        metadata, _ = _read(file)
    except _DAMAGE:
        metadata = split_in(file)
    require_model(file, metadata)


def fault_of_tokenizer(file: Path) -> str | None:
    """Why no tokenizer can be built from the file; None if it can, or if the file is damaged."""
    from transformers.integrations.gguf.reader import read_gguf_metadata

    try:
        return tokenizer_fault(read_gguf_metadata(str(file), (MERGES,))[0])
    except _DAMAGE:
        return None


def set_sizes(config: "PretrainedConfig", file: Path) -> None:
    """Set the sizes of heads and experts from the file, because transformers uses defaults."""
    metadata, _ = _read(file)
    arch = metadata.get("general.architecture")
    if config.model_type in _HEADS_OF_ALL:
        head = metadata.get(f"{arch}.attention.key_length")
        if head is None and config.model_type.startswith("qwen3"):  # the default of llama.cpp
            head = config.hidden_size // config.num_attention_heads
        if head is not None:
            config.head_dim = int(head)
    expert = metadata.get(f"{arch}.expert_feed_forward_length")
    if expert is not None and hasattr(config, "moe_intermediate_size"):
        config.moe_intermediate_size = int(expert)


def metadata_of(file: Path) -> dict[str, Any]:
    """The metadata of a .gguf file. For a long list, only its length is given."""
    return _read(file)[0]


def unread_scaling(config: "PretrainedConfig", file: Path) -> str | None:
    """A warning if the file has a RoPE scaling that transformers did not read; else None."""
    metadata, _ = _read(file)
    before = f"{metadata.get('general.architecture')}.rope.scaling."
    found = {k.removeprefix(before): v for k, v in metadata.items() if k.startswith(before)}
    rope = getattr(config, "rope_parameters", None) or {}
    if found.get("type", "none") == "none" or rope.get("rope_type", "default") != "default":
        return None
    values = ", ".join(f"{key} {value}" for key, value in found.items())
    return f"its RoPE scaling is not read: {values}; on long texts it differs from llama.cpp"


def _read(file: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The metadata, and the names of the tensors.

    The result is cached: reading a vocabulary of 49,152 tokens takes half a second, and several
    functions call this.
    """
    status = file.stat()
    return _read_once(str(file), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=2)
def _read_once(
    file: str, num_bytes: int, modified_ns: int
) -> tuple[dict[str, Any], tuple[str, ...]]:
    from transformers.integrations.gguf.reader import read_gguf_metadata

    metadata, names = read_gguf_metadata(file)
    return metadata, names


def unused_tensors(model: "PreTrainedModel", file: Path) -> list[str]:
    """The tensors of the file that the model does not use. transformers ignores them silently.

    Returns [] for an architecture without a known map of names.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    kind = model.config.model_type
    arch = next(
        (a for a, n in MODEL_ARCH_NAMES.items() if n == _ARCHITECTURES.get(kind, kind)), None
    )
    if arch is None:
        return []
    names = get_tensor_name_map(arch, model.config.num_hidden_layers)
    used = set[str]()
    for name in model.state_dict():
        stem, _, end = name.rpartition(".")
        if end in _EXPERTS:
            layer = "".join(part for part in stem.split(".") if part.isdigit())
            used |= {f"blk.{layer}.{tensor}" for tensor in _EXPERTS[end]}
        elif known := names.get_name(stem):
            used.add(f"{known}.{end}")
    _, there = _read(file)
    return sorted({*there} - used)
