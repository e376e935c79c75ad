"""The tensors in a file of `torch.save`, by name. No code of the file is run."""

import warnings
from pathlib import Path
from pickle import PickleError
from typing import TYPE_CHECKING
from zipfile import is_zipfile

if TYPE_CHECKING:
    import torch


def pickled_tensors(file: Path) -> "dict[str, torch.Tensor]":
    """The tensors; {} for a file that can't be read, which other code reports.

    Only the used pages of the file are read. A file in torch's format from before 2020 is read
    completely.
    """
    import torch

    try:
        with warnings.catch_warnings(action="ignore"):  # about TorchScript, which is refused
            found = torch.load(file, map_location="cpu", mmap=is_zipfile(file), weights_only=True)
    except (OSError, RuntimeError, ValueError, TypeError, EOFError, AttributeError, PickleError):
        return {}
    stored = found.items() if isinstance(found, dict) else ()
    return {str(name): one for name, one in stored if torch.is_tensor(one)}


def first_bytes(tensor: "torch.Tensor", num_bytes: int) -> bytes:
    """The first bytes of a tensor, row after row."""
    import torch

    count = num_bytes // tensor.element_size()
    data = tensor.reshape(-1)[:count].contiguous().view(torch.uint8)
    return bytes(data.numpy().tobytes())


def have_equal_bytes(one: "torch.Tensor", other: "torch.Tensor") -> bool:
    """Whether two tensors have the same type, shape and bytes; NaNs of the same bits are equal."""
    import torch

    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    flat = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other))
    return torch.equal(*flat)
