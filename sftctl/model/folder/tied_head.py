"""Find a head in the files that is not equal to the embedding, although config.json ties the two.

`train` and `inspect-ckpt` follow the same rule. Loads torch only for a file of `torch.save`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

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
    """ConfigError if config.json ties head and embedding, but the loaded head is another tensor.

    A checkpoint with two tensors would not fit the model that config.json describes.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    can_tie = bool(getattr(model, "_tied_weights_keys", None))
    is_apart = head is not None and head.weight is not embedding.weight
    if can_tie and is_apart and _is_tied(model.config):
        raise ConfigError(f"model {name}: {HEAD_DIFFERS}", HEAD_HINT)


def require_tied_files(name: str, config: "PretrainedConfig", folder: Path) -> None:
    """ConfigError if the model in these files would fail `require_tied_head` after loading."""
    if _is_tied(config) and has_other_head(folder):
        raise ConfigError(f"model {name}: {HEAD_DIFFERS}", HEAD_HINT)


def _is_tied(config: "PretrainedConfig") -> bool:
    return bool(getattr(config, "tie_word_embeddings", False))


class Beginning(NamedTuple):
    """The first bytes of a tensor in a file, up to one megabyte."""

    dtype: str
    data: bytes


def heads_differ(beginnings: Mapping[str, Beginning]) -> bool:
    """Whether head and embedding have the same dtype but begin with different bytes.

    `beginnings` maps names to tensors; other tensors are ignored. False if one of the two is
    missing.
    """
    roles = {role: one for name, one in beginnings.items() if (role := role_of(name))}
    head, embedding = roles.get("head"), roles.get("embedding")
    if head is None or embedding is None or head.dtype != embedding.dtype:
        return False
    return head.data != embedding.data


def role_of(name: str) -> str | None:
    """The role of a tensor in the model by its name: `head`, `embedding` or None."""
    plain = plain_name(name)
    if plain in _HEADS:
        return "head"
    return "embedding" if plain.endswith(_EMBEDDINGS) else None


def has_other_head(folder: Path) -> bool:
    """Whether the head in a folder begins with other bytes than the embedding.

    False if there is no head, or if a file can't be read. (Other code reports such a file.)
    """
    beginnings: dict[str, Beginning] = {}
    try:
        for file in sorted(folder.glob("model*.safetensors")):
            beginnings |= _in_safetensors(file)
        for file in sorted(folder.glob("pytorch_model*.bin")) if not beginnings else ():
            beginnings |= _in_pickle(file)
        return heads_differ(beginnings)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError):
        return False


def _in_safetensors(file: Path) -> dict[str, Beginning]:
    """The first bytes of head and embedding, if they are in this file."""
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
    """The first bytes of head and embedding in a file of `torch.save`, without reading the rest of
    it.
    """
    from sftctl.model.folder.pickled_tensors import first_bytes, pickled_tensors

    return {
        name: Beginning(str(tensor.dtype), first_bytes(tensor, COMPARED_BYTES))
        for name, tensor in pickled_tensors(file).items()
        if role_of(name) is not None
    }
