"""Whether a folder's weights fit its config.json, and whether `sftctl train` can use them.

The names that a model needs are known for the families in `_LAYER`. For others only numbers of
layers, the embedding and the head are judged. Nothing here loads torch.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sftctl.checkpoint.tensor_index import NUMBER_TYPES
from sftctl.errors import ConfigError
from sftctl.inspection.formats.config_values import doubt_of_values, misfit_of_values
from sftctl.inspection.formats.files import Files
from sftctl.inspection.inspection import Tensors
from sftctl.inspection.pickles.values import table
from sftctl.model.folder.tied_head import HEAD_DIFFERS, has_other_head
from sftctl.model.folder.weight_names import Names, plain_name, renamed
from sftctl.model.trainable import code_in, require_not_quantized

_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_NORMS = ("input_layernorm", "post_attention_layernorm")
_FOUR_NORMS = (*_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")
_QK_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
_DENSE = (*_ATTENTION, *_MLP, *_NORMS)
_LAYER: dict[str, tuple[str, ...]] = {  # the weights of one layer
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
_TIED_BY_DEFAULT = ("gemma", "gemma2", "gemma3_text", "cohere")
_LAYER_NUMBER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.(.+)")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")
_QUANTIZED = ("F8_E4M3", "F8_E5M2", "I8", "U8", "U32", "I32")
_CAUSAL = ("ForCausalLM", "LMHeadModel")


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
    is_foreign = isinstance(layers, int) and family in _LAYER
    extra = [name for name in shapes if is_foreign and _layer_of(name) >= int(layers or 0)]
    adapter = [name for name in raw if "lora_" in name]
    return Names(missing, [*extra, *adapter], wrong)


def _full(name: str) -> str:
    """The name in the model with a head: a base model is saved without the first `model.`."""
    begins = ("layers.", "embed_tokens.", "norm.")
    if name.startswith(("model.model.", "model.lm_head.")):  # a wrapper called model
        return name.removeprefix("model.")
    return f"model.{name}" if name.startswith(begins) else name


def _layer_of(name: str) -> int:
    match = _LAYER_NUMBER.search(name)
    return int(match[1]) if match else -1


def _expected(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, tuple[int, ...] | None]]:
    """The weights that the model of config.json needs, with their shapes where they are known."""
    family, layers = config.get("model_type"), config.get("num_hidden_layers")
    hidden, vocab = config.get("hidden_size"), config.get("vocab_size")
    rows = (vocab, hidden) if isinstance(vocab, int) and isinstance(hidden, int) else None
    if family not in _LAYER or not isinstance(layers, int):
        yield from _by_other_layers(layers, shapes)
        return
    yield "model.embed_tokens.weight", rows
    yield "model.norm.weight", None
    if not config.get("tie_word_embeddings", family in _TIED_BY_DEFAULT):
        yield "lm_head.weight", rows
    sizes = _sizes(config)
    for layer in range(min(layers, 10_000)):
        for part in _LAYER[family]:
            yield f"model.layers.{layer}.{part}.weight", sizes.get(part)


def _sizes(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """The shapes of a layer's matrices, if config.json has all the sizes."""
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
    """For a family without a list: layers without any weight in the files."""
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


def quantized_dtype(tensors: Tensors) -> str | None:
    """The type of a matrix whose numbers mean nothing without scales, if there is one."""
    found = (one.dtype for one in tensors.values() if len(one.shape) > 1)
    name = next((dtype for dtype in found if dtype in _QUANTIZED), None)
    return None if name is None else NUMBER_TYPES[name].torch


def judge_weights(
    files: Files, config: Mapping[str, Any], tensors: Tensors
) -> tuple[list[str], list[str], str | None]:
    """Problems, notes, and the command that trains from these weights, if it would work."""
    path, notes = files.path, list[str]()
    if not config or not tensors:
        return [], [] if tensors else ["no weights in it"], None
    if note := _unreadable_numbers(path, config, tensors):
        return [], note, show_tensors(path)
    names = Names() if files.problems else names_of(tensors, config)  # damage is enough
    if problem := _misfit(path, config, tensors, names):
        return [f"config.json: {problem}"], [], None
    if line := renamed("weights", [name.removeprefix("model.") for name in tensors]):
        notes.append(line)
    if names.unexpected:
        notes.append(f"{len(names.unexpected)} tensors in layers that config.json does not count")
    obstacle = _obstacle(path, config) or _what_train_lacks(files, tensors)
    if obstacle is not None:
        return [], [*notes, obstacle], show_tensors(path)
    return [], notes, f"`sftctl train --model {path}` starts a run from its weights"


def _misfit(path: Path, config: Mapping[str, Any], tensors: Tensors, names: Names) -> str | None:
    """What in config.json can't be true of these tensors."""
    tied = config.get("tie_word_embeddings", config.get("model_type") in _TIED_BY_DEFAULT)
    apart = HEAD_DIFFERS if tied and has_other_head(path) else None
    return misfit_of_values(config, tensors) or names.problem() or apart


def _obstacle(path: Path, config: Mapping[str, Any]) -> str | None:
    """A note on why `sftctl train` can't use the model, or may be unable to."""
    classes = config.get("architectures")
    if isinstance(classes, list) and classes and not str(classes[0]).endswith(_CAUSAL):
        return f"{classes[0]} is not a causal language model of text alone"
    if code := code_in(path):
        return f"needs code from its folder, which is never run: {code}"
    if doubt := doubt_of_values(config):
        return doubt
    family = config.get("model_type")
    if family not in _LAYER:
        check = f"`sftctl train --model {path} --dry-run` does"
        return f"inspect-ckpt does not know the weights of a {family} and can't check them: {check}"
    return None


def _unreadable_numbers(path: Path, config: Mapping[str, Any], tensors: Tensors) -> list[str]:
    """Notes on weights that are quantized; none if they are not."""
    try:
        require_not_quantized(str(path), config)
    except ConfigError as error:
        return [error.message.removeprefix(f"model {path}: "), error.hint or ""]
    dtype = quantized_dtype(tensors)
    return [f"weights of type {dtype} can't be trained; take the model in bfloat16"] * bool(dtype)


def show_tensors(path: Path) -> str:
    """The command to name where no other command works."""
    return f"`sftctl inspect-ckpt {path} --tensors` shows its tensors"


def _what_train_lacks(files: Files, tensors: Tensors) -> str | None:
    """A note on what `sftctl train` needs besides the weights, with the option for it."""
    settings = files.read_json("tokenizer_config.json")
    has_template = "chat_template.jinja" in files.sizes or "chat_template" in settings
    if not any(name in files.sizes for name in _TOKENIZERS):
        return "no tokenizer in it: train needs --tokenizer DIR"
    if not has_template:
        return "its tokenizer has no chat template: train needs --chat-template FILE"
    ids, rows = _num_ids(files), _num_embeddings(tensors)
    if rows is not None and ids > rows:
        sizes = f"{ids} ids, the model has embeddings for {rows}"
        return f"its tokenizer has {sizes}: train needs --tokenizer DIR"
    return None


def _num_ids(files: Files) -> int:
    """The number of tokens in tokenizer.json; 0 if it is absent."""
    read = files.read_json("tokenizer.json")
    vocabulary, added = table(read.get("model")).get("vocab"), read.get("added_tokens")
    entries = vocabulary if isinstance(vocabulary, (dict, list)) else ()
    texts = {one[0] if isinstance(one, list) and one else str(one) for one in entries}
    texts |= {table(one).get("content") for one in added} if isinstance(added, list) else set()
    return len(texts)


def _num_embeddings(tensors: Tensors) -> int | None:
    """The number of rows of the embedding, by its usual name."""
    found = (one for name, one in tensors.items() if name.endswith("embed_tokens.weight"))
    return next((one.shape[0] for one in found if len(one.shape) == 2), None)
