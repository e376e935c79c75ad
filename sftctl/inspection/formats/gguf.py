"""Read the header of a .gguf file: its keys and its list of tensors, but no tensor data."""

import math
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from sftctl.checkpoint.tensor_index import NUMBER_TYPES, Part, StoredTensor
from sftctl.disk import read_refusals
from sftctl.errors import CorruptCheckpoint
from sftctl.inspection.formats.files import Files, first_bytes
from sftctl.inspection.formats.gguf_kinds import (
    inspect_unread,
    judge_gguf,
    misnamed_part,
    parts_of,
)
from sftctl.inspection.formats.model_files import NO_STATE, as_weights
from sftctl.inspection.inspection import Inspection, weights_dtype
from sftctl.model.gguf.kind import LFS_POINTER, kind_by_first_bytes

_MOST_ENTRIES = 1 << 20
_LONGEST_TEXT_BYTES = 1 << 24
_LONGEST_ARRAY = 1 << 32
_SHOWN_ITEMS = 8  # of an array, because vocabularies are long
_NUMBERS = {  # number of a value type -> format for `struct`
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?",
    10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_TEXT, _ARRAY = 8, 9
_PLAIN_TYPES = {
    0: "F32", 1: "F16", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16",
}  # fmt: skip
_QUANTIZED_TYPES = {
    2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 29: ("IQ1_M", 256, 56),
    34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}  # fmt: skip
TYPES = {
    **{number: (name, 1, NUMBER_TYPES[name].num_bytes) for number, name in _PLAIN_TYPES.items()},
    **_QUANTIZED_TYPES,
}
"""Number of a tensor type in ggml -> (our name, elements per block, bytes per block)."""


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """The header of a .gguf file."""

    version: int
    values: dict[str, Any]  # of an array, only the first items
    tensors: dict[str, StoredTensor]


def is_gguf_file(path: Path) -> bool:
    """Whether this is a GGUF file, or an older GGML file, by its name or first bytes."""
    if not path.is_file():
        return False
    first = first_bytes(path)
    is_ggml = kind_by_first_bytes(first) is not None and not first.startswith(LFS_POINTER[:9])
    return path.suffix == ".gguf" or first.startswith(b"GGUF") or is_ggml


def inspect_gguf_file(path: Path) -> Inspection:
    """One .gguf file. A part of a split model is inspected together with the other parts."""
    if (unread := inspect_unread(path)) is not None:
        return unread
    files = Files.of(path)
    try:
        header = read_gguf(path)
    except CorruptCheckpoint as error:
        files.add(error)
        return replace(files.inspection("GGUF file", {}), obstacles=[NO_STATE])
    parts, lost = parts_of(path, header.values)
    if misnamed := misnamed_part(path, header.values):
        files.problems.append(misnamed[0])
        files.remedies[misnamed[0]] = misnamed[1]
    tensors = dict(header.tensors)
    for part in parts:
        try:
            tensors |= read_gguf(part).tensors if part.name != path.name else {}
        except CorruptCheckpoint as error:
            files.add(error)
    weights = as_weights(tensors)
    format, problems, notes, advice = judge_gguf(path, header.values, weights, len(parts))
    files.problems.extend([*(f"{name}: missing" for name in lost), *problems])
    sizes = {part.name: part.stat().st_size for part in parts}
    return replace(
        files.inspection(format, weights, advice),
        facts={
            "dtype": weights_dtype(weights),
            "config": {"gguf": header.values},
            "versions": {"gguf": header.version},
        },
        files={name: {"num_bytes": size, "sha256": None} for name, size in sizes.items()},
        num_bytes=sum(sizes.values()),
        obstacles=[NO_STATE],
        notes=notes,
    )


def read_gguf(file: Path) -> GgufHeader:
    """Read the header. CorruptCheckpoint if it is damaged, or if the file is too short for it."""
    try:
        with read_refusals(file, CorruptCheckpoint, missing="missing"), file.open("rb") as stream:
            return _header(stream, file)
    except struct.error as problem:
        cut = f"{file}: not a complete .gguf file: it ends within its header"
        raise CorruptCheckpoint(cut) from problem
    except ValueError as problem:
        raise CorruptCheckpoint(f"{file}: not a complete .gguf file: {problem}") from problem


def _header(stream: IO[bytes], file: Path) -> GgufHeader:
    if stream.read(4) != b"GGUF":
        raise ValueError("it does not start with GGUF")
    version = _number(stream, "<I")
    if version not in (2, 3):
        raise ValueError(f"version {version} is not supported")
    num_tensors, num_values = _count(stream), _count(stream)
    values = {_text(stream): _value(stream, _number(stream, "<I")) for _ in range(num_values)}
    entries = [_entry(stream) for _ in range(num_tensors)]
    alignment = values.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"alignment {alignment} is not a positive integer")
    data_begin = -(-stream.tell() // alignment) * alignment
    num_bytes = file.stat().st_size
    tensors = {}
    for name, shape, kind, offset in entries:
        tensor = _tensor(file, shape, kind, data_begin + offset)
        end = tensor.parts[0].begin + tensor.num_bytes
        if end > num_bytes:
            raise ValueError(
                f"{name} ends at byte {end}, the file has {num_bytes}: it is truncated"
            )
        tensors[name] = tensor
    return GgufHeader(version, values, tensors)


def _tensor(file: Path, shape: tuple[int, ...], kind: int, begin: int) -> StoredTensor:
    if kind not in TYPES:
        raise ValueError(f"tensor type {kind} is unknown")
    name, block_elements, block_bytes = TYPES[kind]
    count = math.prod(shape)
    num_bytes = count // block_elements * block_bytes
    return StoredTensor(
        name, shape, count, num_bytes, (Part(file, begin, shape, (0,) * len(shape)),)
    )


def _entry(stream: IO[bytes]) -> tuple[str, tuple[int, ...], int, int]:
    name, num_axes = _text(stream), _number(stream, "<I")
    if num_axes > 8:
        raise ValueError(f"{name} has {num_axes} axes")
    sizes = [_number(stream, "<Q") for _ in range(num_axes)]  # the innermost axis first
    return name, tuple(reversed(sizes)), _number(stream, "<I"), _number(stream, "<Q")


def _value(stream: IO[bytes], kind: int) -> Any:
    if kind == _TEXT:
        return _text(stream)
    if kind in _NUMBERS:
        return _number(stream, _NUMBERS[kind])
    if kind != _ARRAY:
        raise ValueError(f"value type {kind} is unknown")
    item_kind, count = _number(stream, "<I"), _number(stream, "<Q")
    if item_kind == _ARRAY:  # no tool writes these, and a hostile file could nest them to any depth
        raise ValueError("arrays of arrays are not supported")
    if count > _LONGEST_ARRAY:
        raise ValueError(f"an array of {count} items is too long")
    first = [_value(stream, item_kind) for _ in range(min(count, _SHOWN_ITEMS))]
    rest = count - len(first)
    if item_kind in _NUMBERS:
        stream.seek(rest * struct.calcsize(_NUMBERS[item_kind]), 1)
    else:
        for _ in range(rest):
            _skip_text(stream)
    return first


def _number(stream: IO[bytes], form: str) -> Any:
    return struct.unpack(form, stream.read(struct.calcsize(form)))[0]


def _count(stream: IO[bytes]) -> int:
    count = int(_number(stream, "<Q"))
    if count > _MOST_ENTRIES:
        raise ValueError(f"{count} entries are too many")
    return count


def _text_bytes(stream: IO[bytes]) -> int:
    num_bytes = int(_number(stream, "<Q"))
    if num_bytes > _LONGEST_TEXT_BYTES:
        raise ValueError(f"a text of {num_bytes} bytes is too long")
    return num_bytes


def _text(stream: IO[bytes]) -> str:
    return stream.read(_text_bytes(stream)).decode("utf-8", "replace")


def _skip_text(stream: IO[bytes]) -> None:
    num_bytes = _text_bytes(stream)
    if len(stream.read(num_bytes)) != num_bytes:
        raise ValueError("it ends within its keys")
