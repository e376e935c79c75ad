"""Which files in a folder have the weights that are read, and whether two of these files disagree.

`train` and `inspect-ckpt` follow these rules. Loads torch only for several files of `torch.save`.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from sftctl.errors import ConfigError
from sftctl.jsonio import loads

SINGLE_AND_INDEX = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
"""(single file, index of several files), in the order in which transformers looks for them."""

LONGEST_HEADER_BYTES = 1 << 26
"""At most this much of a safetensors file's header is read."""

_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".npz", ".msgpack", ".h5")
_USUAL_NAMES = ("model*.safetensors", "pytorch_model*.bin")
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


def no_file_read(folder: Path) -> tuple[str, str] | None:
    """The reason and the hint if no file of a folder is read for weights.

    None if a file is read, or if an index names the files.
    """
    if files_read(folder) or index_of(folder) is not None:
        return None
    names = " nor ".join(single for single, _ in SINGLE_AND_INDEX)
    reason = f"neither {names} nor an index of parts is in it, and train reads no other file"
    links = (folder / name for pair in SINGLE_AND_INDEX for name in pair)
    if link := next((one for one in links if one.is_symlink() and not one.exists()), None):
        hint = "copy the file itself into this folder, and not a link"
        return f"{link.name} is a link to a file that is not there", hint
    files = sorted(one.name for one in folder.iterdir() if one.suffix == ".gguf")
    if files:
        return reason, f"name the .gguf file itself: {folder / files[0]}"
    if not has_weights(folder):
        return reason, "copy or download the weights into this folder"
    return reason, "rename the file, if it has tensors of these names"


def require_file_read(name: str, folder: Path) -> None:
    """ConfigError for a folder in which no file is read for weights."""
    if folder.is_dir() and (lacks := no_file_read(folder)):
        raise ConfigError(f"model {name}: {lacks[0]}", hint=lacks[1])


def has_weights(folder: Path) -> bool:
    """Whether a folder has a file of weights, even if `train` does not read the file."""
    entries = folder.iterdir() if folder.is_dir() else ()
    return any(one.suffix in _SUFFIXES and one.is_file() for one in entries)


def unread_files(folder: Path) -> str | None:
    """A line about weight files with the usual names that are not read; None if all are read."""
    read = files_read(folder)
    if not read:
        return None
    here = {file.resolve() for file in read}
    found = (one for pattern in _USUAL_NAMES for one in folder.glob(pattern))
    others = sorted(one.name for one in found if one.resolve() not in here)
    if not others:
        return None
    index = index_of(folder)
    source = read[0].name if index is None else f"the files that {index.name} names"
    more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
    return f"the weights are read from {source}; not read: {', '.join(others[:_SHOWN])}{more}"


def require_single_tensors(name: str, folder: Path) -> None:
    """ConfigError if two of the files that are read have a tensor of the same name with different
    values.
    """
    files = files_read(folder)
    if len(files) < 2:
        return
    of_torch = [file for file in files if file.suffix == ".bin"]
    for tensor, one, other in _twice_in_torch(of_torch) if of_torch else _twice(files):
        raise ConfigError(
            f"model {name}: {tensor} is in {one.name} and, with other values, in {other.name}",
            hint="copy or download the weights again: the files belong to two models",
        )


def _twice(files: Sequence[Path]) -> Iterator[tuple[str, Path, Path]]:
    """Names of tensors that are in two safetensors files with different values."""
    found: dict[str, tuple[Path, Mapping[str, Any]]] = {}
    for file in files:
        for name, entry in header_of(file).items():
            if name in found and not _are_equal(found[name], (file, entry)):
                yield name, found[name][0], file
            found.setdefault(name, (file, entry))


def _twice_in_torch(files: Sequence[Path]) -> Iterator[tuple[str, Path, Path]]:
    """Names of tensors that are in two files of `torch.save` with different values.

    Files from before 2020 are not compared: reading a tensor would read the complete file. Such
    files are never parts of a model.
    """
    from sftctl.model.folder.pickled_tensors import have_equal_bytes, pickled_tensors

    found: dict[str, Path] = {}
    stored = {file: pickled_tensors(file) for file in files if is_zipfile(file)}
    for file, tensors in stored.items():
        for name, tensor in tensors.items():
            if name in found and not have_equal_bytes(stored[found[name]][name], tensor):
                yield name, found[name], file
            found.setdefault(name, file)


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
