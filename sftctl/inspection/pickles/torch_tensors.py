"""Find the tensors in the value of a torch.save file, from the calls that would build them."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sftctl.checkpoint.tensor_index import NUMBER_TYPES, Part, StoredTensor
from sftctl.inspection.pickles.opcodes import Made, Name, Outside

_MOST_VALUES = 1_000_000
_LONGEST_PLACE = 300  # characters
_REBUILT = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")
_DTYPES = {known.storage: name for name, known in NUMBER_TYPES.items() if known.storage}


def walk(value: Any) -> Iterator[tuple[str, Any]]:
    """Every leaf of nested containers, with its place ("model.x"); each container once."""
    pending: list[tuple[str, Any]] = [("", value)]
    seen: set[int] = set()
    while pending and len(seen) < _MOST_VALUES:
        place, item = pending.pop()
        if len(place) > _LONGEST_PLACE:
            continue
        if isinstance(item, Made) and item.by == "torch._utils._rebuild_parameter":
            item = item.arguments[0] if item.arguments else None
        if not isinstance(item, (dict, list, tuple)):
            yield place, item
        elif id(item) not in seen:
            seen.add(id(item))
            pairs = item.items() if isinstance(item, dict) else enumerate(item)
            before = f"{place}." if place else ""
            pending += [(before + _text(key), child) for key, child in pairs]


def _text(key: Any) -> str:
    return str(key)[:_LONGEST_PLACE] if isinstance(key, (str, int)) else type(key).__name__


def storages_in(value: Any) -> Iterator[Outside]:
    """The storages that the tensors of a value use."""
    for _, item in walk(value):
        if isinstance(item, Made) and item.by in _REBUILT:
            yield from filter(_is_storage, item.arguments[:1])


def _is_storage(outside: Any) -> bool:
    """`('storage', torch.FloatStorage, key, location, number of elements)`, maybe more."""
    return (
        isinstance(outside, Outside)
        and isinstance(outside.key, tuple)
        and len(outside.key) >= 5
        and isinstance(outside.key[1], Name)
        and isinstance(outside.key[4], int)
        and outside.key[4] >= 0
    )


def _dtype(storage: Outside) -> str | None:
    name = storage.key[1].text.rpartition(".")[2].removesuffix("Storage")
    return _DTYPES.get(name)


def storage_bytes(storage: Outside) -> int:
    """The storage's length in the file."""
    known = NUMBER_TYPES.get(_dtype(storage) or "")
    return (known.num_bytes if known else 1) * int(storage.key[4])


def tensors_in(
    value: Any, file: Path, storages: dict[str, tuple[int, int]]
) -> tuple[dict[str, StoredTensor], list[str]]:
    """The tensors of a value by place, and the places of tensors whose bytes are not in the file.

    `storages` maps a storage's key to its first byte in the file and its length in bytes.
    """
    found, lost = {}, []
    for place, item in sorted(walk(value), key=lambda pair: pair[0]):
        if isinstance(item, Made) and item.by in _REBUILT and len(item.arguments) >= 4:
            tensor = _tensor(item, file, storages)
            if tensor is None:
                lost.append(place)
            else:
                found[place] = tensor
    return found, lost


def _tensor(made: Made, file: Path, storages: dict[str, tuple[int, int]]) -> StoredTensor | None:
    storage, start, shape, strides = made.arguments[:4]
    if not (isinstance(shape, tuple) and isinstance(strides, tuple) and _is_storage(storage)):
        return None
    if (dtype := _dtype(storage)) is None:
        return None
    numbers = (start, *shape, *strides)
    if not all(isinstance(n, int) and n >= 0 for n in numbers) or len(shape) != len(strides):
        return None
    begin, num_bytes = storages.get(str(storage.key[2]), (0, -1))
    count, size = math.prod(shape), NUMBER_TYPES[dtype].num_bytes
    end = start + sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) + 1
    if num_bytes < 0 or (count and end * size > num_bytes):
        return None
    rows = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    in_rows = all(n == 1 or step == row for n, step, row in zip(shape, strides, rows, strict=True))
    part = Part(
        file,
        begin + start * size,
        shape,
        (0,) * len(shape),
        None if in_rows or not count else strides,
    )
    return StoredTensor(dtype, shape, count, count * size, (part,))
