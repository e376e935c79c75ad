"""A head in the files that differs from the embedding, although config.json says that they are
tied.

`train` and `inspect-ckpt` judge it by this rule. Loads torch only for a file of `torch.save`.
"""

from collections.abc import Mapping
from pathlib import Path
from pickle import PickleError
from typing import TYPE_CHECKING, NamedTuple
from zipfile import is_zipfile

from sftctl.errors import ConfigError
from sftctl.jsonio import loads
from sftctl.model.folder.read_files import LONGEST_HEADER_BYTES
from sftctl.model.folder.weight_names import plain_name

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_HEADS = ("lm_head.weight", "embed_out.weight")
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
COMPARED_BYTES = 1 << 20
HEAD_DIFFERS = "tie_word_embeddings is true, but the head in the files is not the embedding"
HEAD_HINT = 'set "tie_word_embeddings": false in config.json; then both are trained'


def require_tied_head(name: str, model: "PreTrainedModel") -> None:
    """ConfigError if the head of a loaded model should be tied to the embedding and is not. A
    checkpoint with both tensors would not fit the model that config.json describes.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    can_tie = bool(getattr(model, "_tied_weights_keys", None))
    is_apart = head is not None and head.weight is not embedding.weight
    if can_tie and is_apart and _is_tied(model.config):
        raise ConfigError(f"model {name}: {HEAD_DIFFERS}", HEAD_HINT)


def require_tied_files(name: str, config: "PretrainedConfig", folder: Path) -> None:
    """ConfigError if `require_tied_head` would refuse the files of a folder."""
    if _is_tied(config) and has_other_head(folder):
        raise ConfigError(f"model {name}: {HEAD_DIFFERS}", HEAD_HINT)


def _is_tied(config: "PretrainedConfig") -> bool:
    return bool(getattr(config, "tie_word_embeddings", False))


class Beginning(NamedTuple):
    """The first bytes of a tensor in a file, at most a megabyte."""

    dtype: str
    data: bytes


def heads_differ(beginnings: Mapping[str, Beginning]) -> bool:
    """Whether the head and the embedding have the same type and begin with different bytes.

    `beginnings` has a model's tensors by name, or only these two. False if one of them is absent.
    """
    roles = {role: one for name, one in beginnings.items() if (role := role_of(name))}
    head, embedding = roles.get("head"), roles.get("embedding")
    if head is None or embedding is None or head.dtype != embedding.dtype:
        return False
    return head.data != embedding.data


def role_of(name: str) -> str | None:
    """`head` or `embedding` for the name of such a tensor in a file; else None."""
    plain = plain_name(name)
    if plain in _HEADS:
        return "head"
    return "embedding" if plain.endswith(_EMBEDDINGS) else None


def has_other_head(folder: Path) -> bool:
    """Whether the weights in a folder hold a head whose first bytes are not the embedding's.

    False also if there is no head, or if a file can't be read, which other code reports.
    """
    beginnings: dict[str, Beginning] = {}
    try:
        for file in sorted(folder.glob("model*.safetensors")):
            beginnings |= _in_safetensors(file)
        for file in sorted(folder.glob("pytorch_model*.bin")) if not beginnings else ():
            beginnings |= _in_pickle(file)
        return heads_differ(beginnings)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, PickleError):
        return False


def _in_safetensors(file: Path) -> dict[str, Beginning]:
    """The head and the embedding, if they are in this file."""
    if not file.is_file():
        return {}
    found = {}
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        entries = loads(stream.read(min(length, LONGEST_HEADER_BYTES)))
        for name, entry in entries.items():
            if role_of(name) is not None:
                begin, end = entry["data_offsets"]
                stream.seek(8 + length + begin)
                data = stream.read(min(end - begin, COMPARED_BYTES))
                found[name] = Beginning(entry["dtype"], data)
    return found


def _in_pickle(file: Path) -> dict[str, Beginning]:
    """The same for a file of `torch.save`; only the pages that are compared are read from it."""
    import torch

    is_zip = is_zipfile(file)  # torch's older format has no place for each tensor
    tensors = torch.load(file, map_location="cpu", mmap=is_zip, weights_only=True)
    found = {}
    for name, tensor in tensors.items():
        if role_of(name) is not None:
            count = COMPARED_BYTES // tensor.element_size()
            data = tensor.reshape(-1)[:count].contiguous().view(torch.uint8).numpy().tobytes()
            found[name] = Beginning(str(tensor.dtype), data)
    return found
