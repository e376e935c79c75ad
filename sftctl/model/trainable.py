"""Refuses models that can't be trained, and selects the parameters to train by pattern.

Which parameters are trained is in one place: their `requires_grad`, which `select_trained` sets
once. The engine, the checkpoint, the estimates and the screens read it from there.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftctl.disk import read_refusals
from sftctl.errors import ConfigError
from sftctl.jsonio import loads
from sftctl.model.gguf.kind import LFS_POINTER, LFS_PROBLEM

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

_QUANTIZED = ("quantization_config", "compression_config", "quantization")
"""Where quantizers describe themselves in config.json; the last is MLX's."""

WEIGHT_FILES = ("model*.safetensors", "pytorch_model*.bin")
_LONGEST_HEADER_BYTES = 1 << 26
_QUANTIZED_TYPES = {
    "I8": "int8", "U8": "uint8", "I32": "int32", "U32": "uint32",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip

_MEDIA = ("vision", "audio", "image", "video", "vq")
_TEXT_ONLY = "take a causal language model: text in, text out, such as Qwen3ForCausalLM"
_CONFIGURATIONS = ("config.json", "tokenizer_config.json")


def require_trainable(name: str, config: "PretrainedConfig") -> None:
    """ConfigError if the model `name` is quantized, or is not a causal model of text alone."""
    require_not_quantized(name, config.to_dict())
    problem = _other_kind(config)
    if problem is not None:
        raise ConfigError(f"model {name}: {config.model_type} is {problem}", hint=_TEXT_ONLY)


def require_not_quantized(name: str, values: Mapping[str, Any]) -> None:
    """ConfigError if config.json, read as `values`, says that the weights are quantized."""
    nested = (value for value in values.values() if isinstance(value, dict))
    for section in (values, *nested):
        for key in _QUANTIZED:
            if key == "quantization_config" and section.get(key) == {}:  # transformers refuses it
                raise ConfigError(
                    f"model {name}: config.json has an empty {key}, so how its weights are stored "
                    "is not known",
                    hint=f"remove {key} from config.json if they are not quantized",
                )
            if section.get(key):
                raise ConfigError(
                    f"model {name}: its weights are quantized ({_method(section[key])}), and "
                    "quantized weights can't be trained here",
                    hint="take the model that it was quantized from, in float32, bfloat16 or "
                    "float16",
                )


def require_numbers(folder: Path) -> None:
    """ConfigError for a Git LFS pointer, and for numbers that mean nothing without scales."""
    for file in (file for pattern in WEIGHT_FILES for file in sorted(folder.glob(pattern))):
        if not file.is_file():
            continue
        with read_refusals(file, ConfigError, "make it readable"), file.open("rb") as stream:
            start = stream.read(len(LFS_POINTER))
            stream.seek(8)
            length = int.from_bytes(start[:8], "little")
            head = stream.read(min(length, _LONGEST_HEADER_BYTES))
        if start == LFS_POINTER:
            hint = "`git lfs pull` in its folder downloads the files"
            raise ConfigError(f"{file}: {LFS_PROBLEM}", hint)
        if file.suffix == ".safetensors" and (dtype := _quantized_dtype(head)) is not None:
            raise ConfigError(
                f"model {folder}: its weights are of type {dtype}, which mean nothing without the "
                "scales of a quantizer",
                hint="take the model that it was quantized from, in float32, bfloat16 or float16",
            )


def _quantized_dtype(head: bytes) -> str | None:
    """The type of a matrix in a safetensors header that a quantizer wrote, if there is one."""
    try:
        entries = loads(head)
    except ValueError:
        return None
    described = entries.values() if isinstance(entries, dict) else ()
    for one in described:
        shape = one.get("shape") if isinstance(one, dict) else None
        if isinstance(shape, list) and len(shape) > 1 and one.get("dtype") in _QUANTIZED_TYPES:
            return _QUANTIZED_TYPES[one["dtype"]]
    return None


def _method(described: object) -> str:
    """The quantizer's name and bits, from its section of config.json."""
    if not isinstance(described, dict):
        return str(described)
    method = described.get("quant_method") or ("MLX" if "group_size" in described else None)
    bits = described.get("bits") or described.get("w_bit")
    if bits is None:
        bits = next((n for n in (4, 8) if described.get(f"load_in_{n}bit")), None)
    parts = [str(method)] if method else []
    return ", ".join([*parts, f"{bits} bits"] if bits else parts) or "by a method that is not named"


def _other_kind(config: "PretrainedConfig") -> str | None:
    """The kind of a model that is not a causal language model of text alone; None if it is one."""
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    if getattr(config, "is_encoder_decoder", False):
        return "an encoder-decoder model, not a causal language model"
    parts = set(getattr(config, "sub_configs", {}))
    has_media = any(kind in part for part in parts for kind in _MEDIA)
    causal = AutoModelForCausalLM._model_mapping.get(type(config), None)
    names = [cls.__name__ for cls in causal] if isinstance(causal, tuple) else []
    names += [causal.__name__] if isinstance(causal, type) else []
    is_whole = any(name.endswith("ForConditionalGeneration") for name in names)
    if has_media and (not names or is_whole or "text_config" not in parts):
        return "a model of text with images or sound, not of text alone"
    if not names:
        return "not a causal language model"
    masked = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if masked and not getattr(config, "is_decoder", False):
        return "a masked language model (it reads both ways), not a causal one"
    return None


def code_in(folder: Path) -> str | None:
    """The Python files that a model folder asks to run, and the files that name them; or None."""
    found = {folder / name: _code_named_by(folder / name) for name in _CONFIGURATIONS}
    named_by = [str(file) for file, code in found.items() if code]
    code = sorted({one for named in found.values() for one in named})
    return f"{', '.join(code)}, named by auto_map in {' and '.join(named_by)}" if code else None


def _code_named_by(file: Path) -> list[str]:
    try:
        values = loads(file.read_bytes())
    except (OSError, ValueError):
        return []
    named = values.get("auto_map") if isinstance(values, dict) else None
    return [_file(reference) for reference in _references(named)]


def _references(named: object) -> Iterator[str]:
    """The texts in an auto_map, which may hold lists."""
    if isinstance(named, str):
        yield named
    elif isinstance(named, (dict, list)):
        for inner in named.values() if isinstance(named, dict) else named:
            yield from _references(inner)


def _file(reference: str) -> str:
    """`modeling_x.XForCausalLM` -> `modeling_x.py`; `owner/name--…` keeps its repository."""
    repository, _, code = reference.rpartition("--")
    file = f"{code.rpartition('.')[0] or code}.py"
    return f"{file} of {repository}" if repository else file


_LAYERS = re.compile(r"layers\[(-?\d*):(-?\d*)\]")
_LAYER_NUMBER = re.compile(r"\.(\d+)\.")
"""The first number in a name is that of the layer: `model.layers.3.mlp.experts.0.weight`."""


def select_trained(
    model: "PreTrainedModel", train_only: Iterable[str] | None, freeze: Iterable[str] | None
) -> None:
    """Clear `requires_grad` of every parameter that the patterns leave out of the training.

    A parameter is trained if `train_only` matches it (None: matches all) and `freeze` does not. A
    parameter that was frozen before stays frozen. ConfigError if a pattern matches nothing, or if
    nothing is left.
    """
    names = _names_by_id(model)
    trained = set(names) if train_only is None else matching(model, "train.train_only", train_only)
    trained -= matching(model, "train.freeze", freeze or ())
    for parameter in model.parameters():
        if id(parameter) not in trained:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(
            "train.freeze and train.train_only leave no parameter to train",
            hint=f"the parameters are {_summary(names)}",
        )


def require_new_rows_trained(model: "PreTrainedModel") -> None:
    """ConfigError if the embeddings or the head are frozen, to which rows of new tokens were added.

    These rows would stay the mean of the others.
    """
    parts = {"embeddings": model.get_input_embeddings(), "head": model.get_output_embeddings()}
    for name, part in parts.items():
        if not any(parameter.requires_grad for parameter in part.parameters()):
            raise ConfigError(
                f"model.new_tokens: train.freeze or train.train_only freezes the {name}, so that "
                "the rows of the new tokens would never be trained",
                hint="train embeddings and head with the rest: take them out of train.freeze, or "
                "put them into train.train_only",
            )


def learning_rate_factors(
    model: "PreTrainedModel", factors: Mapping[str, float] | None
) -> dict[str, float]:
    """The name of each parameter that a pattern in `optim.groups` matches, and its factor.

    ConfigError if a pattern matches nothing, or two of them give a parameter different factors.
    """
    names, found = _names_by_id(model), dict[int, tuple[str, float]]()
    for pattern, factor in (factors or {}).items():
        for key in matching(model, "optim.groups", [pattern]):
            other, before = found.setdefault(key, (pattern, factor))
            if before != factor:
                raise ConfigError(
                    f"optim.groups: {other} and {pattern} both match {names[key][0]}",
                    hint="a parameter has one factor: make the patterns narrower",
                )
    return {names[key][0]: factor for key, (_, factor) in found.items()}


def matching(model: "PreTrainedModel", setting: str, patterns: Iterable[str]) -> set[int]:
    """The ids of all parameters that one of the patterns matches.

    A tied parameter has several names, of which one has to match. ConfigError, which names the
    `setting`, for a pattern that matches nothing.
    """
    names, result = _names_by_id(model), set[int]()
    for pattern in patterns:
        found = _matched(model, names, pattern.strip())
        if not found:
            raise ConfigError(
                f"{setting}: {pattern} matches no parameter of the model",
                hint=f"its parameters are {_summary(names)}; or embeddings, head, layers[:N]",
            )
        result |= found
    return result


def _names_by_id(model: "PreTrainedModel") -> dict[int, list[str]]:
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return names


def _matched(model: "PreTrainedModel", names: dict[int, list[str]], pattern: str) -> set[int]:
    """The ids of the parameters that one pattern matches."""
    if pattern == "embeddings":
        return _ids(model.get_input_embeddings())
    if pattern == "head":
        return _ids(model.get_output_embeddings())
    if (bounds := _LAYERS.fullmatch(pattern)) is not None:
        start, end = (int(bound) if bound else None for bound in bounds.groups())
        chosen = set(range(_num_layers(names))[start:end])
        return {key for key, (name, *_) in names.items() if _layer(name) in chosen}
    return {
        key
        for key, all_names in names.items()
        if any(fnmatchcase(name, pattern) or name.startswith(f"{pattern}.") for name in all_names)
    }


def _ids(module: "nn.Module | None") -> set[int]:
    return set() if module is None else {id(parameter) for parameter in module.parameters()}


def _layer(name: str) -> int | None:
    """The number of the layer that a parameter is in; None if it is outside of the layers."""
    found = _LAYER_NUMBER.search(name)
    return int(found[1]) if found else None


def _num_layers(names: dict[int, list[str]]) -> int:
    numbers = [number for name, *_ in names.values() if (number := _layer(name)) is not None]
    return max(numbers, default=-1) + 1


def _summary(names: dict[int, list[str]]) -> str:
    """All names, with * in place of the numbers."""
    every = (name for all_names in names.values() for name in all_names)
    return ", ".join(dict.fromkeys(_LAYER_NUMBER.sub(".*.", name) for name in every))
