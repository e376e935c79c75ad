"""Weights of tools whose files sftctl does not read; and single-file checkpoints in a folder."""

import re
from pathlib import Path
from typing import NamedTuple

from sftctl.inspection.formats.files import Files
from sftctl.inspection.inspection import HERE_IS, NOT_READ


class _Kind(NamedTuple):
    """A kind of weights of another tool.

    `pattern` matches the names of its files. `remedy` says how to get a Hugging Face model.
    """

    name: str
    pattern: str
    remedy: str


_FROM = "`from_pretrained(DIR, from_{})` of transformers 4 reads it, `save_pretrained` converts it"
_KINDS = (
    _Kind(
        "LitGPT checkpoint", r"lit_model\.pth", "`litgpt convert_from_litgpt` makes a model of it"
    ),
    _Kind(
        "consolidated checkpoint of Meta or Mistral",
        r"consolidated(\.\d+)?\.(pth|safetensors)",
        "the conversion script of transformers makes a model of it",
    ),
    _Kind(
        "fairseq checkpoint",
        r"checkpoint(_last|_best|_\d+_\d+|\d+)\.pt",
        "fairseq continues from it",
    ),
    _Kind("Flax model directory", r"flax_model.*\.msgpack", _FROM.format("flax=True")),
    _Kind("TensorFlow model directory", r"tf_model.*\.h5|model\.ckpt.*", _FROM.format("tf=True")),
    _Kind("ONNX model directory", r".+\.onnx", "it is for inference; take the model it came from"),
    _Kind("OpenVINO model directory", r"openvino_model.*", "take the model that it came from"),
    _Kind("Core ML model", r".+\.mlmodel", "take the model that it came from"),
    _Kind("Rust model directory", r"rust_model\.ot", "take the model that it came from"),
)
_ALONE = (".ckpt", ".nemo", ".gguf", ".pt", ".pth", ".bin", ".safetensors")
_MOST_SHOWN = 3


def weights_of_others(files: Files) -> tuple[str, str] | None:
    """The kind of weights in a folder that transformers can't load, and the problem; or None."""
    if files.problems:
        return None
    for kind in _KINDS:
        found = [name for name in files.sizes if re.fullmatch(kind.pattern, name)]
        if found:
            return kind.name, f"{found[0]}: {NOT_READ}; {kind.remedy}"
    rest = sorted(name for name in files.sizes if name.endswith(_ALONE))
    if not rest:
        return "Hugging Face model directory", "model.safetensors: missing; no weights are here"
    more = f" and {len(rest) - _MOST_SHOWN} more" if len(rest) > _MOST_SHOWN else ""
    shown = ", ".join(rest[:_MOST_SHOWN]) + more
    return "folder of weights", f"model.safetensors: missing; {HERE_IS} {shown}"


def files_to_inspect(folder: Path) -> list[Path]:
    """The single-file checkpoints in a folder that is not a checkpoint, the newest last."""
    if not folder.is_dir():
        return []
    found = [one for one in folder.iterdir() if one.is_file() and one.suffix in _ALONE]
    return sorted(found, key=lambda one: (_is_model(one.name), one.stat().st_mtime, one.name))


def _is_model(name: str) -> bool:
    """Whether this can be the model of a folder. `mmproj` files are projectors for images."""
    return not name.startswith("mmproj")
