"""Weights that the files hold under two names: with a known prefix and without it."""

from pathlib import Path
from typing import TYPE_CHECKING

from sftctl.errors import ConfigError
from sftctl.model.folder.pickled_tensors import have_equal_bytes, pickled_tensors
from sftctl.model.folder.read_files import files_read, header_of
from sftctl.model.folder.weight_names import plain_name

if TYPE_CHECKING:
    import torch

_HINT = "remove the tensors under one of the two names, or copy or download the weights again"


def require_one_value(name: str, folder: Path) -> None:
    """ConfigError if the files that are read hold a weight under two names with other values."""
    found: dict[str, tuple[Path, str]] = {}
    for file in files_read(folder):
        for tensor in header_of(file) or pickled_tensors(file):
            first = found.setdefault(plain_name(tensor), (file, tensor))
            if first[1] == tensor:
                continue
            if not have_equal_bytes(_read(*first), _read(file, tensor)):
                raise two_values(f"model {name}", first[1], tensor)


def two_values(where: str, name: str, other: str) -> ConfigError:
    """The error for a weight with different values under these two names."""
    names = sorted((name, other), key=lambda one: (one != plain_name(one), one))
    return ConfigError(
        f"{where}: {names[0]} is in the files also as {names[1]}, with other values", hint=_HINT
    )


def _read(file: Path, name: str) -> "torch.Tensor":
    if file.suffix == ".bin":
        return pickled_tensors(file)[name]
    from safetensors import safe_open

    with safe_open(file, framework="pt") as stored:
        tensor: torch.Tensor = stored.get_tensor(name)
    return tensor
