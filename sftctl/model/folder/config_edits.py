"""What to change in config.json if one of its values does not fit the weights.

`train` and `inspect-ckpt` give the same hints. Loads neither torch nor transformers.
"""

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from sftctl.words import printable

Misfit = tuple[str, Sequence[int], Sequence[int]]
"""A tensor: its name, its shape in the files, and its shape according to config.json."""

_SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings",
    "n_embd", "n_layer", "n_head", "n_positions",
)  # fmt: skip
_DTYPES = ("auto", "bfloat16", "float16", "half", "float32", "float", "float64", "double")
_ROWS_OF_TOKENS = re.compile(r"(embed_tokens|wte|embed_in|word_embeddings|lm_head|embed_out)\.")
_OF_MLP = re.compile(r"\.(gate_proj|up_proj|down_proj|c_fc|fc1|fc2)\.")
_OF_KEYS = re.compile(r"\.(k_proj|v_proj)\.")
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.(.+)")
_LARGEST_SIZE = 1e9
_FEWEST_MODULES = 3  # a complete layer has an attention, an MLP and a norm, or more
EMPTY_TENSORS = "empty, as a rank of DeepSpeed ZeRO-3 saves what it does not hold"
_GATHER = (
    "save it again with its weights gathered (DeepSpeed: stage3_gather_16bit_weights_on_model_save)"
)
_AS_THE_TENSORS = "in config.json, as the tensors have it"


def edit_of_shapes(misfits: Sequence[Misfit]) -> str:
    """What to change in config.json if tensors have other shapes than config.json says."""
    if any(0 in there for _, there, _ in misfits):
        return _GATHER
    sizes = {size for misfit in misfits for size in _differing(misfit)}
    if len(sizes) == 1:
        (size,) = sizes
        if all(_ROWS_OF_TOKENS.search(name) for name, _, _ in misfits):
            return f'set "vocab_size": {size} {_AS_THE_TENSORS}'
        if all(_OF_MLP.search(name) for name, _, _ in misfits):
            return f'set "intermediate_size": {size} {_AS_THE_TENSORS}'
        if all(_OF_KEYS.search(name) for name, _, _ in misfits):
            key = '"num_key_value_heads" in config.json'
            return f'correct {key}: times "head_dim" it must be {size}'
    return "correct the sizes in config.json, or put back the config.json of these weights"


def _differing(misfit: Misfit) -> Iterator[int]:
    """The sizes in which the shape in the files differs. 0 if the number of axes differs."""
    _, there, here = misfit
    if len(there) != len(here):
        yield 0
    else:
        yield from (one for one, other in zip(there, here, strict=True) if one != other)


def edit_of_layers(missing: Collection[str]) -> str | None:
    """What to change if exactly the last layers are missing in the files; else None."""
    found = [match for name in missing if (match := _LAYER.search(name))]
    parts: dict[int, set[str]] = {}
    for match in found:
        parts.setdefault(int(match[1]), set()).add(match[2])
    numbers = sorted(parts)
    is_rest = bool(numbers) and numbers == [*range(numbers[0], numbers[-1] + 1)] and numbers[0] > 0
    are_whole = len({frozenset(one) for one in parts.values()}) == 1
    if len(found) < len(missing) or not is_rest or not are_whole:
        return None
    if len({part.partition(".")[0] for part in parts[numbers[0]]}) < _FEWEST_MODULES:
        return None
    key = f'"num_hidden_layers": {numbers[0]}'
    again = "copy or download the weights again"
    return f"set {key} in config.json if the model has no more layers; else {again}"


def edit_of_type(config: Mapping[str, Any], known: Collection[str]) -> str:
    """What to add if config.json has no model_type. If its class belongs to a known type: this
    type.
    """
    classes = config.get("architectures")
    name = str(classes[0]) if isinstance(classes, list) and classes else ""
    plain = {one.replace("_", ""): one for one in known}
    family = plain.get(name.removesuffix("ForCausalLM").lower())
    doubt = "" if family else ", if you know which model it is"
    return f'add it to config.json, such as "model_type": "{family or "llama"}"{doubt}'


def wrong_size(config: Mapping[str, Any]) -> tuple[str, str] | None:
    """A size that is not an integer above 0, or a NaN, and the change; None if there is none."""
    for key in _SIZES:
        value = config.get(key)
        if isinstance(value, (str, bool, float)) or (isinstance(value, int) and value < 1):
            said = f"{key} is {printable(repr(value))}, not a size"
            return said, edit_of_size(key, value)
    for key, value in config.items():
        if isinstance(value, float) and math.isnan(value):
            return f"{printable(key)} is NaN, not a number", edit_of_size(key, value)
    return None


def edit_of_size(key: str, value: object) -> str:
    """What to change if a size is not an integer above 0."""
    if isinstance(value, str) and value.strip().isdecimal():
        return f'write "{key}": {int(value)} in config.json, without quotes'
    if isinstance(value, float) and value.is_integer() and 0 < value < _LARGEST_SIZE:
        return f'write "{key}": {int(value)} in config.json'
    page = "the model's page, or its original config.json, has the number"
    return f"correct {printable(key)} in config.json: {page}"


def fault_of_config(config: Mapping[str, Any]) -> tuple[str, str] | None:
    """A value with which transformers fails, without naming it; and what to change. None: there is
    none.
    """
    padding, rows = config.get("pad_token_id"), config.get("vocab_size")
    if isinstance(padding, int) and isinstance(rows, int) and padding >= rows:
        reason = f"config.json: pad_token_id is {padding}, but vocab_size is {rows}"
        return reason, "set pad_token_id to an id of the tokenizer, or to null"
    for key in ("dtype", "torch_dtype"):
        if isinstance(name := config.get(key), str) and name.removeprefix("torch.") not in _DTYPES:
            reason = f"config.json: {key} is {printable(repr(name))}, which torch does not know"
            return reason, f'write "{key}": "bfloat16", "float16" or "float32" in config.json'
    for section in (config, *(one for one in config.values() if isinstance(one, dict))):
        if isinstance(theta := section.get("rope_theta"), str):
            reason = f"config.json: rope_theta is {printable(repr(theta))}, not a number"
            return reason, "write it without quotes in config.json"
    return None
