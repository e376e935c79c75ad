"""The names and shapes of the weights that the model of a config.json needs.

They are known for the model types in `LAYER`. For another type, only layers that are missing
completely are found. Does not load torch.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from sftctl.inspection.inspection import Tensors
from sftctl.model.folder.weight_names import Names, plain_name

_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_NORMS = ("input_layernorm", "post_attention_layernorm")
_FOUR_NORMS = (*_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")
_QK_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
_DENSE = (*_ATTENTION, *_MLP, *_NORMS)
LAYER: dict[str, tuple[str, ...]] = {  # the weights of one layer
    "llama": _DENSE,
    "mistral": _DENSE,
    "qwen2": _DENSE,
    "smollm3": _DENSE,
    "granite": _DENSE,
    "gemma": _DENSE,
    "qwen3": (*_DENSE, *_QK_NORMS),
    "gemma2": (*_ATTENTION, *_MLP, *_FOUR_NORMS),
    "gemma3_text": (*_ATTENTION, *_MLP, *_FOUR_NORMS, *_QK_NORMS),
    "phi3": ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", _MLP[2], *_NORMS),
    "olmo2": (*_ATTENTION, *_MLP, *_FOUR_NORMS[1::2], *_QK_NORMS),
    "qwen3_moe": (*_ATTENTION, *_NORMS, *_QK_NORMS),  # some layers may be dense
}  # fmt: skip
TIED_BY_DEFAULT = ("gemma", "gemma2", "gemma3_text", "cohere")
_LAYER_NUMBER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.(.+)")


def names_of(tensors: Tensors, config: Mapping[str, Any]) -> Names:
    """How the names and shapes of a folder's tensors fit its config.json."""
    plain = {plain_name(name.removeprefix("model.")): one for name, one in tensors.items()}
    raw = [name.removeprefix("model.") for name in tensors]
    shapes = {_full(name): tensor.shape for name, tensor in plain.items()}
    expected = dict(_expected(config, shapes))
    missing = {name for name in expected if name not in shapes}
    wrong = [
        (name, shapes[name], shape)
        for name, shape in expected.items()
        if shape is not None and name in shapes and shapes[name] != shape
    ]
    layers, family = config.get("num_hidden_layers"), config.get("model_type")
    is_foreign = isinstance(layers, int) and family in LAYER
    extra = [name for name in shapes if is_foreign and _layer_of(name) >= int(layers or 0)]
    adapter = [name for name in raw if "lora_" in name]
    return Names(missing, [*extra, *adapter], wrong)


def _full(name: str) -> str:
    """The name of a tensor in the model with a head.

    In the files of a base model, names lack the first `model.`.
    """
    begins = ("layers.", "embed_tokens.", "norm.")
    if name.startswith(("model.model.", "model.lm_head.")):  # from a wrapper called `model`
        return name.removeprefix("model.")
    return f"model.{name}" if name.startswith(begins) else name


def _layer_of(name: str) -> int:
    match = _LAYER_NUMBER.search(name)
    return int(match[1]) if match else -1


def _expected(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, tuple[int, ...] | None]]:
    """The weights that the model of config.json needs, with their shapes if these are known."""
    family, layers = config.get("model_type"), config.get("num_hidden_layers")
    hidden, vocab = config.get("hidden_size"), config.get("vocab_size")
    rows = (vocab, hidden) if isinstance(vocab, int) and isinstance(hidden, int) else None
    if family not in LAYER or not isinstance(layers, int):
        yield from _by_other_layers(layers, shapes)
        return
    yield "model.embed_tokens.weight", rows
    yield "model.norm.weight", None
    if not config.get("tie_word_embeddings", family in TIED_BY_DEFAULT):
        yield "lm_head.weight", rows
    sizes = _sizes(config)
    for layer in range(min(layers, 10_000)):
        for part in LAYER[family]:
            yield f"model.layers.{layer}.{part}.weight", sizes.get(part)


def _sizes(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """The shapes of a layer's matrices, as far as config.json has the sizes."""
    keys = ("hidden_size", "intermediate_size", "num_attention_heads")
    hidden, ffn, heads = (config.get(key) for key in keys)
    if not (isinstance(hidden, int) and isinstance(ffn, int) and isinstance(heads, int) and heads):
        return {}
    kv, head = config.get("num_key_value_heads"), config.get("head_dim")
    sizes = {"mlp.gate_proj": (ffn, hidden), "mlp.up_proj": (ffn, hidden)}
    sizes |= {"mlp.down_proj": (hidden, ffn), "mlp.gate_up_proj": (2 * ffn, hidden)}
    if isinstance(head, int):
        sizes |= {"self_attn.q_proj": (heads * head, hidden)}
        sizes |= {"self_attn.o_proj": (hidden, heads * head)}
        if isinstance(kv, int):
            sizes |= dict.fromkeys(("self_attn.k_proj", "self_attn.v_proj"), (kv * head, hidden))
    return sizes


def _by_other_layers(
    layers: Any, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, None]]:
    """For other model types: the weights of layers that have no weight in the files."""
    parts = defaultdict[int, set[str]](set)
    for name in shapes:
        if match := _LAYER_NUMBER.search(name):
            parts[int(match[1])].add(name)
    if not parts or not isinstance(layers, int):
        return
    names = parts[max(parts)]
    for layer in range(min(layers, 10_000)):
        if layer not in parts:
            yield from ((_numbered(name, layer), None) for name in sorted(names))


def _numbered(name: str, layer: int) -> str:
    return re.sub(r"\.(layers|h|blocks)\.\d+\.", rf".\1.{layer}.", name, count=1)
