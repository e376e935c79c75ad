"""Files and folders that are not checkpoints: what they are, and what to do with them."""

import re
from pathlib import Path
from typing import NamedTuple

from sftctl.data.reading.folders import is_store
from sftctl.words import in_shell

_UNPACK = "unpack it, then inspect the folder or the file in it"
_TAR_AT, _TAR = 257, b"ustar"
_START_BYTES = 512


class Kind(NamedTuple):
    """What a path is, and a hint."""

    what: str
    hint: str


_CONVERT = "convert it to safetensors with the library that wrote it"
_BY_FIRST_BYTES = {
    b"PK\x03\x04": Kind("a zip archive that torch.save did not write", _UNPACK),
    b"\x1f\x8b": Kind("compressed by gzip", _UNPACK),
    b"\xfd7zXZ\0": Kind("compressed by xz", _UNPACK),
    b"BZh": Kind("compressed by bzip2", _UNPACK),
    b"\x28\xb5\x2f\xfd": Kind("compressed by zstandard", _UNPACK),
    b"7z\xbc\xaf": Kind("a 7-Zip archive", _UNPACK),
    b"Rar!": Kind("a RAR archive", _UNPACK),
    b"\x89HDF": Kind("an HDF5 file, such as Keras writes", _CONVERT),
    b"\x93NUMPY": Kind("a NumPy array", _CONVERT),
}
_BY_NAME = {
    ".onnx": Kind("an ONNX model, for inference", "take the model that it came from"),
    ".tflite": Kind("a TensorFlow Lite model, for inference", "take the model that it came from"),
    ".msgpack": Kind("weights of Flax", _CONVERT),
}
_ROWS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt")
_OF_A_MODEL = re.compile(
    r".*(config|index|tokenizer|vocab|merges|special_tokens_map|added_tokens|trainer_state)"
    r".*\.(json|txt)|.*\.jinja|tokenizer\.model|tekken\.json"
)


def kind_of_other(path: Path) -> Kind | None:
    """The kind of a path that no format recognizes; None if it is not known."""
    if path.is_dir():
        return _kind_of_folder(path)
    if not path.is_file():  # a pipe would wait for a writer
        return None
    with path.open("rb") as file:
        start = file.read(_START_BYTES)
    if start and not start.strip(b"\0"):
        what = "zero bytes at its start, as in a download that was not finished"
        return Kind(what, "download it again")
    if start[_TAR_AT:].startswith(_TAR):
        return Kind("a tar archive", _UNPACK)
    found = (kind for first, kind in _BY_FIRST_BYTES.items() if start.startswith(first))
    if kind := next(found, None) or _BY_NAME.get(path.suffix):
        return kind
    if path.suffix in _ROWS:
        return Kind(
            "not a checkpoint, but perhaps rows of data", f"`sftctl train --data {in_shell(path)}`"
        )
    return None


def is_of_a_model(path: Path) -> bool:
    """Whether a file has a name such as config.json, which files of a model have. Such a file alone
    is not a checkpoint.
    """
    return path.is_file() and _OF_A_MODEL.fullmatch(path.name) is not None


def _kind_of_folder(folder: Path) -> Kind | None:
    if is_store(folder):
        hint = f"`sftctl train --data {in_shell(folder)}` trains on it"
        return Kind("a prepared store of rows, not a checkpoint", hint)
    if (folder / "model_index.json").is_file():
        hint = "sftctl trains and inspects language models"
        return Kind("a pipeline of diffusers, which makes images", hint)
    return None
