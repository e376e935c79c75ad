"""Refuse quantized weights, by config.json and by the headers of the weight files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from sftctl.disk import read_refusals
from sftctl.errors import ConfigError
from sftctl.model.folder.read_files import header_of
from sftctl.model.gguf.kind import LFS_POINTER, LFS_PROBLEM

_QUANTIZED = ("quantization_config", "compression_config", "quantization")
"""The keys of config.json in which quantizers describe themselves. The last key is MLX's."""

WEIGHT_FILES = ("model*.safetensors", "pytorch_model*.bin")
_QUANTIZED_TYPES = {
    "I8": "int8", "U8": "uint8", "I32": "int32", "U32": "uint32",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F4": "float4_e2m1fn", "F6_E2M3": "float6_e2m3fn", "F6_E3M2": "float6_e3m2fn",
}  # fmt: skip
"""Types of a matrix that a quantizer wrote: safetensors' names, and torch's."""

_NOT_REAL = {
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "BOOL": "bool",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "C64": "complex64",
}  # fmt: skip
FROM_WHICH = "take the model that it was quantized from, in float32, bfloat16 or float16"
WHOLE_NUMBERS_HINT = "save the model again in float32, bfloat16 or float16"


def require_not_quantized(name: str, values: Mapping[str, Any]) -> None:
    """ConfigError if `values`, the content of config.json, says that weights are quantized."""
    nested = (value for value in values.values() if isinstance(value, dict))
    for section in (values, *nested):
        for key in _QUANTIZED:
            # transformers would raise an error.
            if key == "quantization_config" and section.get(key) == {}:
                raise ConfigError(
                    f"model {name}: config.json has an empty {key}, so how its weights are stored "
                    "is not known",
                    hint=f"remove {key} from config.json if they are not quantized",
                )
            if section.get(key):
                raise ConfigError(
                    f"model {name}: its weights are quantized ({_method(section[key])}), and "
                    "quantized weights can't be trained here",
                    hint=FROM_WHICH,
                )


def require_numbers(folder: Path) -> None:
    """ConfigError for a Git LFS pointer, for quantized weights and for weights that are
    integers.
    """
    for file in (file for pattern in WEIGHT_FILES for file in sorted(folder.glob(pattern))):
        if not file.is_file():
            continue
        with read_refusals(file, ConfigError, "make it readable"), file.open("rb") as stream:
            start = stream.read(len(LFS_POINTER))
        if start == LFS_POINTER:
            hint = "`git lfs pull` in its folder downloads the files"
            raise ConfigError(f"{file}: {LFS_PROBLEM}", hint)
        entries = header_of(file) or _pickled_entries(file)
        types = {name: str(one.get("dtype")) for name, one in entries.items()}
        shapes = {name: one.get("shape") for name, one in entries.items()}
        if dtype := quantized_type(types, shapes):
            raise ConfigError(f"model {folder}: {without_scales(dtype)}", hint=FROM_WHICH)
        if problem := whole_numbers(types):
            raise ConfigError(f"model {folder}: {problem}", hint=WHOLE_NUMBERS_HINT)


def _pickled_entries(file: Path) -> dict[str, Mapping[str, Any]]:
    """The types and shapes in a file of `torch.save`, as in a header of safetensors.

    A file of before 2020 is not read, because this would read all of its numbers.
    """
    if file.suffix != ".bin" or not is_zipfile(file):
        return {}
    from sftctl.model.folder.pickled_tensors import pickled_tensors

    names = {torch: name for name, torch in (_QUANTIZED_TYPES | _NOT_REAL).items()}
    return {
        name: {
            "dtype": names.get(str(tensor.dtype).removeprefix("torch.")),
            "shape": [*tensor.shape],
        }
        for name, tensor in pickled_tensors(file).items()
    }


def without_scales(dtype: str) -> str:
    """What is wrong with a matrix of this type, whose scales nothing reads."""
    return f"its weights are of type {dtype}, which means nothing without the scales of a quantizer"


def quantized_type(types: Mapping[str, str], shapes: Mapping[str, Any]) -> str | None:
    """The type of a matrix that a quantizer wrote, by the types and shapes by name; None: no such.

    A mask of attention (GPT-2's `attn.bias`, with four axes) may have such a type.
    """
    for name, shape in shapes.items():
        num_axes = len(shape) if isinstance(shape, (list, tuple)) else 0
        is_mask = name.endswith("bias") and num_axes > 2
        if types[name] in _QUANTIZED_TYPES and num_axes > 1 and not is_mask:
            return _QUANTIZED_TYPES[types[name]]
    return None


def whole_numbers(types: Mapping[str, str]) -> str | None:
    """A message about weights that hold integers or complex numbers; None if there are none.

    `types` maps names to dtypes. Only names that end with `.weight` count: buffers such as GPT-2's
    attention mask (`attn.bias`) may hold integers.
    """
    found = sorted(n for n, one in types.items() if n.endswith(".weight") and one in _NOT_REAL)
    if not found:
        return None
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    dtype = _NOT_REAL[types[found[0]]]
    kind = "a complex number" if dtype.startswith("complex") else "an integer"
    return f"{found[0]}{more} has the type {dtype}: a weight is not {kind}"


def _method(described: object) -> str:
    """The quantizer's name and its bits, from the quantizer's section of config.json."""
    if not isinstance(described, dict):
        return str(described)
    method = described.get("quant_method") or ("MLX" if "group_size" in described else None)
    bits = described.get("bits") or described.get("w_bit")
    if bits is None:
        bits = next((n for n in (4, 8) if described.get(f"load_in_{n}bit")), None)
    parts = [str(method)] if method else []
    return ", ".join([*parts, f"{bits} bits"] if bits else parts) or "by a method that is not named"
