"""List the tensors in safetensors files, read only from their headers. Does not load torch.

A tensor that is sharded over ranks is in several files. In each file, the metadata entry
DCP_SHARDING_INFO has the offsets of the file's part.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftctl import jsonio
from sftctl.checkpoint.safetensors_header import Entry, read_header
from sftctl.disk import read_refusals
from sftctl.errors import CorruptCheckpoint

SUFFIX = ".safetensors"


@dataclass(frozen=True, slots=True)
class NumberType:
    """A dtype, under its names in several libraries."""

    torch: str  # "bfloat16" for torch.bfloat16
    num_bytes: int  # of one element
    numpy: str  # to read the bytes; an integer type if numpy does not have this dtype
    storage: str | None  # in torch.save files: "BFloat16" for torch.BFloat16Storage


NUMBER_TYPES = {
    "F64": NumberType("float64", 8, "<f8", "Double"),
    "F32": NumberType("float32", 4, "<f4", "Float"),
    "F16": NumberType("float16", 2, "<f2", "Half"),
    "BF16": NumberType("bfloat16", 2, "<u2", "BFloat16"),
    "F8_E4M3": NumberType("float8_e4m3fn", 1, "|u1", None),
    "F8_E5M2": NumberType("float8_e5m2", 1, "|u1", None),
    "I64": NumberType("int64", 8, "<i8", "Long"),
    "I32": NumberType("int32", 4, "<i4", "Int"),
    "I16": NumberType("int16", 2, "<i2", "Short"),
    "I8": NumberType("int8", 1, "|i1", "Char"),
    "U64": NumberType("uint64", 8, "<u8", None),
    "U32": NumberType("uint32", 4, "<u4", None),
    "U16": NumberType("uint16", 2, "<u2", None),
    "U8": NumberType("uint8", 1, "|u1", "Byte"),
    "BOOL": NumberType("bool", 1, "|b1", "Bool"),
}
"""The dtypes, by their names in safetensors, which sftctl uses too."""


@dataclass(frozen=True, slots=True)
class Part:
    """Where a tensor, or a part of a tensor, is stored."""

    file: Path
    begin: int  # position of the first byte in the file
    shape: tuple[int, ...]
    offsets: tuple[int, ...]  # where this part begins in the complete tensor
    strides: tuple[int, ...] | None = None  # in elements; None: row-major
    # The bytes of the torch.save archive that holds the part; None: no archive.
    archive_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of a checkpoint, with all its parts."""

    dtype: str  # the name in safetensors: F32, BF16, I64, BOOL …
    shape: tuple[int, ...]
    num_elements: int  # in the files; fewer than the shape has if a part is missing
    num_bytes: int
    parts: tuple[Part, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether no part of the tensor is missing."""
        return self.num_elements == math.prod(self.shape)


def stored_tensors(path: Path, names: Iterable[str]) -> dict[str, StoredTensor]:
    """All tensors in the safetensors files `names` of `path`. Raises CorruptCheckpoint."""
    tensors: dict[str, StoredTensor] = {}
    for name in sorted(names):
        if name.endswith(SUFFIX):
            for key, part in tensors_of_file(path / name).items():
                try:
                    tensors[key] = _joined(tensors[key], part) if key in tensors else part
                except ValueError as problem:
                    raise CorruptCheckpoint(f"{path / name}: {key[:80]}: {problem}") from problem
    return tensors


def tensors_of_file(file: Path) -> dict[str, StoredTensor]:
    """The tensors, or parts of tensors, in one file. Raises CorruptCheckpoint."""
    if file.exists() and not file.is_file():  # opening a named pipe would wait for a writer
        raise CorruptCheckpoint(f"{file}: not a regular file")
    try:
        with read_refusals(file, CorruptCheckpoint, missing="missing"):
            header = read_header(file)
        sharding = jsonio.loads(header.metadata.get("DCP_SHARDING_INFO", "{}"))
        return {
            name: _part(file, header.data_begin, entry, sharding.get(name, {}))
            for name, entry in header.entries.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError) as problem:
        raise CorruptCheckpoint(f"{file}: not a safetensors header: {problem}") from problem


def _part(file: Path, data_begin: int, entry: Entry, sharding: Any) -> StoredTensor:
    offsets = tuple(sharding.get("saved_offsets", [0] * len(entry.shape)))
    if not all(isinstance(offset, int) and 0 <= offset < 2**63 for offset in offsets):
        raise ValueError("its saved_offsets are not a list of sizes")
    shape = tuple(size + offset for size, offset in zip(entry.shape, offsets, strict=True))
    part = Part(file, data_begin + entry.begin, entry.shape, offsets)
    num_bytes = entry.end - entry.begin
    return StoredTensor(entry.dtype, shape, math.prod(entry.shape), num_bytes, (part,))


def _joined(one: StoredTensor, other: StoredTensor) -> StoredTensor:
    if one.dtype != other.dtype or len(one.shape) != len(other.shape):
        raise ValueError("its parts have different types or numbers of axes")
    if any(_overlap(part, other.parts[0]) for part in one.parts):
        raise ValueError("two files have the same part of it")
    shape = tuple(max(pair) for pair in zip(one.shape, other.shape, strict=True))
    return StoredTensor(
        one.dtype,
        shape,
        one.num_elements + other.num_elements,
        one.num_bytes + other.num_bytes,
        one.parts + other.parts,
    )


def _overlap(one: Part, other: Part) -> bool:
    axes = zip(one.offsets, one.shape, other.offsets, other.shape, strict=True)
    return all(begin < at + size and at < begin + num for begin, num, at, size in axes)
