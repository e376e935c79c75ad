"""Read the header of a safetensors file, with the checks of the safetensors library, without torch.

The file has 8 bytes (the length of the header), a JSON header, and the data. In the order of their
offsets, each tensor begins where the one before ends. So no two tensors share bytes, and the length
of the data is known from the header.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from sftctl import jsonio

MOST_AXES = 64  # the limit of torch and numpy
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
_LARGEST = 2**64 - 1
_NUM_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "C64": 64, "F8_E5M2": 8, "F8_E4M3": 8,
    "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
"""Every dtype of the format, and the bits of one element."""
_FIELDS = ("dtype", "shape", "data_offsets")


class Entry(NamedTuple):
    """One tensor in the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int  # position in the data
    end: int


class Header(NamedTuple):
    """A checked header."""

    entries: dict[str, Entry]
    metadata: dict[str, str]
    data_begin: int  # the first byte of the data in the file


def read_header(file: Path) -> Header:
    """The header of a safetensors file. ValueError for a file that the library refuses."""
    file_bytes = file.stat().st_size
    with file.open("rb", buffering=0) as stream:
        num_bytes = int.from_bytes(stream.read(8), "little")
        if not 2 <= num_bytes <= min(_MAX_HEADER_BYTES, file_bytes - 8):
            raise ValueError(f"its length field is {num_bytes}, the file has {file_bytes} bytes")
        data = stream.read(num_bytes)
    values = jsonio.loads(data)
    if not isinstance(values, dict):
        raise ValueError("not an object")
    given = values.pop("__metadata__", None)
    metadata = {} if given is None else given
    if b"-0" in data:
        json.loads(data, parse_int=_no_sign)
    _refuse_duplicates(data, values)
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("__metadata__ is not a table of texts")
    num_data_bytes = file_bytes - 8 - num_bytes
    entries = {name: _entry(name[:80], value, num_data_bytes) for name, value in values.items()}
    _require_exact_cover(entries, num_data_bytes)
    return Header(entries, metadata, 8 + num_bytes)


def _no_sign(digits: str) -> int:
    """An integer in a header. ValueError for `-0`: the library refuses it, Python reads 0."""
    if digits.startswith("-"):
        raise ValueError(f"it has the number {digits[:80]}")
    return int(digits)


def _refuse_duplicates(data: bytes, tensors: dict[str, Any]) -> None:
    """ValueError if a key appears twice.

    JSON does not define which value counts then. Python's parser keeps the last, another loader may
    take the first.
    """
    if all(data.count(b'"%s"' % field.encode()) == len(tensors) for field in _FIELDS):
        return  # each field appears once per parsed tensor, so no key was overwritten

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        name, count = Counter(name for name, _ in pairs).most_common(1)[0] if pairs else ("", 1)
        if count > 1:
            raise ValueError(f"it has {name[:80]!r} {count} times")
        return dict(pairs)

    try:
        json.loads(data, object_pairs_hook=unique)
    except RecursionError as problem:
        raise ValueError("nested too deeply") from problem


def _entry(name: str, value: Any, num_data_bytes: int) -> Entry:
    if not isinstance(value, dict):
        raise ValueError(f"{name}: {type(value).__name__}, not an object")
    values: list[Any] = [value.get(field) for field in _FIELDS]
    dtype, shape, offsets = values
    if not isinstance(dtype, str) or dtype not in _NUM_BITS:
        raise ValueError(f"{name}: type {str(dtype)[:40]!r} is unknown")
    if not _are_sizes(shape):
        raise ValueError(f"{name}: its shape is not a list of sizes")
    if len(shape) > MOST_AXES:
        raise ValueError(f"{name}: {len(shape)} axes, at most {MOST_AXES} are possible")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_integer, offsets)):
        raise ValueError(f"{name}: its data_offsets are not two integers")
    begin, end = offsets
    if not 0 <= begin <= end <= num_data_bytes:
        raise ValueError(
            f"data from byte {begin} to {end}, but the file has {num_data_bytes}: it is truncated"
        )
    if _num_bits(name, dtype, shape) != 8 * (end - begin):
        raise ValueError(f"{name}: {end - begin} bytes do not fit its shape and type")
    return Entry(dtype, tuple(shape), begin, end)


def _num_bits(name: str, dtype: str, shape: list[int]) -> int:
    count = _NUM_BITS[dtype]
    for size in shape:  # the library computes the product in this order, in 64 bits
        count *= size
        if count > _LARGEST:
            raise ValueError(f"{name}: its size in bytes does not fit in 64 bits")
    return count


def _require_exact_cover(entries: dict[str, Entry], num_data_bytes: int) -> None:
    position = 0
    for full_name, entry in sorted(entries.items(), key=lambda item: item[1][2:]):
        name = full_name[:80]
        if entry.begin < position:
            raise ValueError(f"{name} overlaps another tensor at byte {entry.begin} of the data")
        if entry.begin > position:
            raise ValueError(f"{entry.begin - position} bytes before {name} belong to no tensor")
        position = entry.end
    if position < num_data_bytes:
        raise ValueError(f"the last {num_data_bytes - position} bytes belong to no tensor")


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(_is_integer(v) and 0 <= v <= _LARGEST for v in values)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
