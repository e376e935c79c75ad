"""A head in the files that is not the embedding, although config.json says that the two are one.

`train` and `inspect-ckpt` judge it by this rule. Loads neither torch nor transformers.
"""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sftctl.errors import ConfigError
from sftctl.jsonio import loads
from sftctl.model.folder.weight_names import plain_name

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_HEADS = ("lm_head.weight", "embed_out.weight")
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
_COMPARED_BYTES = 1 << 20
_LONGEST_HEADER_BYTES = 1 << 26
HEAD_DIFFERS = "tie_word_embeddings is true, but the head in the files is not the embedding"
HEAD_HINT = 'set "tie_word_embeddings": false in config.json; then both are trained'


def require_tied_head(name: str, model: "PreTrainedModel") -> None:
    """ConfigError if the head of a loaded model should be the embedding, and is not.

    A checkpoint of the two would not fit the model that config.json describes.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    can_tie = bool(getattr(model, "_tied_weights_keys", None))
    is_apart = head is not None and head.weight is not embedding.weight
    if can_tie and is_apart and _is_tied(model.config):
        raise ConfigError(f"model {name}: {HEAD_DIFFERS}", HEAD_HINT)


def require_tied_files(name: str, config: "PretrainedConfig", folder: Path) -> None:
    """ConfigError if `require_tied_head` would refuse the safetensors files of a folder."""
    if _is_tied(config) and has_other_head(folder):
        raise ConfigError(f"model {name}: {HEAD_DIFFERS}", HEAD_HINT)


def _is_tied(config: "PretrainedConfig") -> bool:
    return bool(getattr(config, "tie_word_embeddings", False))


class _Place(NamedTuple):
    """Where a tensor is: its type, its file, its first byte and its length."""

    dtype: object
    file: Path
    begin: int
    num_bytes: int


def has_other_head(folder: Path) -> bool:
    """Whether safetensors files of a folder hold a head whose first bytes are not the embedding's.

    False also if there is no head, or if a file can't be read: others report that.
    """
    places: dict[str, _Place] = {}
    try:
        for file in sorted(folder.glob("model*.safetensors")):
            places |= _places(file)
        head, embedding = places.get("head"), places.get("embedding")
        if head is None or embedding is None or head.dtype != embedding.dtype:
            return False
        return _first_bytes(head) != _first_bytes(embedding)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return False


def _places(file: Path) -> dict[str, _Place]:
    """Where the head and the embedding are in one file."""
    if not file.is_file():
        return {}
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        entries = loads(stream.read(min(length, _LONGEST_HEADER_BYTES)))
    found = {}
    for name, entry in entries.items():
        plain = plain_name(name)
        kind = "head" if plain in _HEADS else "embedding" if plain.endswith(_EMBEDDINGS) else None
        if kind is not None:
            begin, end = entry["data_offsets"]
            found[kind] = _Place(entry["dtype"], file, 8 + length + begin, end - begin)
    return found


def _first_bytes(place: _Place) -> bytes:
    with place.file.open("rb") as stream:
        stream.seek(place.begin)
        return stream.read(min(place.num_bytes, _COMPARED_BYTES))
