"""The files of a folder from which weights are read, and tensors that two of them hold.

`train` and `inspect-ckpt` follow these rules. Loads neither torch nor transformers.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sftctl.errors import ConfigError
from sftctl.jsonio import loads

SINGLE_AND_INDEX = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
"""(single file, index of several files), in the order in which transformers looks for them."""

LONGEST_HEADER_BYTES = 1 << 26
"""At most this much of a safetensors file's header is read."""

_COMPARED_AT_ONCE_BYTES = 1 << 24
_SHOWN = 3


def index_of(folder: Path) -> Path | None:
    """The index that names the weight files. None if the weights are in one file, or if there are
    none.
    """
    for single, index in SINGLE_AND_INDEX:
        if (folder / single).is_file():
            return None
        if (folder / index).is_file():
            return folder / index
    return None


def files_read(folder: Path) -> list[Path]:
    """The files from which the weights are read, if they exist."""
    index = index_of(folder)
    if index is None:
        singles = (folder / single for single, _ in SINGLE_AND_INDEX)
        return [file for file in singles if file.is_file()][:1]
    try:
        named = _object(index.read_bytes()).get("weight_map")
    except OSError:  # transformers reports this error later
        return []
    names = {*named.values()} if isinstance(named, dict) else set()
    found = (folder / name for name in names if isinstance(name, str) and name)
    return sorted(file for file in found if file.is_file())


def unread_files(folder: Path) -> str | None:
    """A line about weight files of the same kind that are not read; None if all are read."""
    read = files_read(folder)
    if not read:
        return None
    kind = read[0].suffix
    pattern = f"{'model' if kind == '.safetensors' else 'pytorch_model'}*{kind}"
    here = {file.resolve() for file in read}
    others = sorted(one.name for one in folder.glob(pattern) if one.resolve() not in here)
    if not others:
        return None
    index = index_of(folder)
    source = read[0].name if index is None else f"the files that {index.name} names"
    more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
    return f"the weights are read from {source}; not read: {', '.join(others[:_SHOWN])}{more}"


def require_single_tensors(name: str, folder: Path) -> None:
    """ConfigError if two files that are read hold the same tensor with different values."""
    found: dict[str, tuple[Path, Mapping[str, Any]]] = {}
    for file in files_read(folder):
        for tensor, entry in header_of(file).items():
            if tensor in found and not _are_equal(found[tensor], (file, entry)):
                raise ConfigError(
                    f"model {name}: {tensor} is in {found[tensor][0].name} and, with other values, "
                    f"in {file.name}",
                    hint="copy or download the weights again: the files belong to two models",
                )
            found.setdefault(tensor, (file, entry))


def header_of(file: Path) -> dict[str, Mapping[str, Any]]:
    """The entries of a safetensors header by tensor. {} for a damaged file, or another format."""
    if file.suffix != ".safetensors" or not file.is_file():
        return {}
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            entries = _object(stream.read(min(length, LONGEST_HEADER_BYTES)))
    except OSError:  # other code reports this error
        return {}
    described = {name: one for name, one in entries.items() if isinstance(one, dict)}
    return {name: one for name, one in described.items() if name != "__metadata__"}


def _object(data: bytes) -> dict[str, Any]:
    try:
        read = loads(data)
    except ValueError:
        return {}
    return read if isinstance(read, dict) else {}


def _are_equal(one: tuple[Path, Mapping[str, Any]], other: tuple[Path, Mapping[str, Any]]) -> bool:
    """Whether two stored tensors have the same type, shape and bytes."""
    if any(one[1].get(key) != other[1].get(key) for key in ("dtype", "shape")):
        return False
    return all(a == b for a, b in zip(_bytes_of(*one), _bytes_of(*other), strict=False))


def _bytes_of(file: Path, entry: Mapping[str, Any]) -> Iterator[bytes]:
    begin, end = entry["data_offsets"]
    with file.open("rb") as stream:
        start = 8 + int.from_bytes(stream.read(8), "little")
        for at in range(begin, end, _COMPARED_AT_ONCE_BYTES):
            stream.seek(start + at)
            yield stream.read(min(_COMPARED_AT_ONCE_BYTES, end - at))
