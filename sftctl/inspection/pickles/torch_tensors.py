"""Find the tensors in a torch.save file: its pickle has calls that would build them."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sftctl.checkpoint.safetensors_header import MOST_AXES
from sftctl.checkpoint.tensor_index import NUMBER_TYPES, Part, StoredTensor
from sftctl.inspection.pickles.opcodes import CallResult, Name, PersistentId

_MOST_SHOWN = 10  # the number of tensors with missing bytes that are named
_LONGEST_PLACE = 300  # characters
_TOO_LARGE = 1 << 63  # every size, stride and offset must be smaller
_REBUILT = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")
_OTHER_SIZES = {"ComplexFloatStorage": 8, "ComplexDoubleStorage": 16, "QInt32Storage": 4}
_DTYPES = {known.storage: name for name, known in NUMBER_TYPES.items() if known.storage}


def walk(value: Any) -> Iterator[tuple[str, Any]]:
    """Every leaf of nested containers with its place, such as "model.x".

    Each container is visited once. Leaves whose place is too long are skipped.
    """
    pending: list[Iterator[tuple[str, Any]]] = [iter([("", value)])]
    seen: set[int] = set()
    while pending:
        place, item = next(pending[-1], (None, None))
        if place is None:
            pending.pop()
        elif len(place) <= _LONGEST_PLACE:
            if isinstance(item, CallResult) and item.by == "torch._utils._rebuild_parameter":
                item = item.arguments[0] if item.arguments else None
            if not isinstance(item, (dict, list, tuple)):
                yield place, item
            elif id(item) not in seen:
                seen.add(id(item))
                pending.append(_children(f"{place}." if place else "", item))


def _children(before: str, item: Any) -> Iterator[tuple[str, Any]]:
    for key, child in item.items() if isinstance(item, dict) else enumerate(item):
        yield before + _text(key), child


def _text(key: Any) -> str:
    return str(key)[:_LONGEST_PLACE] if isinstance(key, (str, int)) else type(key).__name__


def storages_in(value: Any) -> Iterator[PersistentId]:
    """The storages that a value refers to, in tensors of every kind (dense, sparse, DTensor)."""
    pending: list[Iterator[Any]] = [iter([value])]
    seen: set[int] = set()
    while pending:
        item = next(pending[-1], pending)
        if item is pending:
            pending.pop()
        elif isinstance(item, PersistentId):
            yield from filter(_is_storage, [item])
        elif isinstance(item, (dict, list, tuple, CallResult)) and id(item) not in seen:
            seen.add(id(item))
            pending.append(_inside(item))


def _inside(item: Any) -> Iterator[Any]:
    if isinstance(item, CallResult):
        return iter((item.arguments, item.state))
    return iter(item.values() if isinstance(item, dict) else item)


def _is_storage(outside: Any) -> bool:
    """Whether this is `('storage', torch.FloatStorage, key, location, number of elements, …)`."""
    return (
        isinstance(outside, PersistentId)
        and isinstance(outside.key, tuple)
        and len(outside.key) >= 5
        and isinstance(outside.key[1], Name)
        and isinstance(outside.key[4], int)
        and 0 <= outside.key[4] < _TOO_LARGE
    )


def _dtype(storage: PersistentId) -> str | None:
    name = storage.key[1].qualified.removesuffix("Storage")
    return _DTYPES.get(name)


def storage_bytes(storage: PersistentId) -> int:
    """The length of a storage in the file."""
    known = NUMBER_TYPES.get(_dtype(storage) or "")
    size = known.num_bytes if known else _OTHER_SIZES.get(storage.key[1].qualified, 1)
    return size * int(storage.key[4])


def tensors_in(
    value: Any, file: Path, storages: dict[str, tuple[int, int]], most: int
) -> tuple[dict[str, StoredTensor], list[str]]:
    """The first `most` tensors of a value by place, and the problems with them.

    `storages` maps the key of a storage to (its first byte in the file, its length in bytes).
    """
    found: dict[str, StoredTensor] = {}
    lost: list[str] = []
    known: dict[int, StoredTensor | None] = {}  # a tensor may be in the value many times
    problems = []
    for place, item in walk(value):
        if not (isinstance(item, CallResult) and item.by in _REBUILT and len(item.arguments) >= 4):
            continue
        if _is_of_other_numbers(item, storages):
            continue
        if len(found) + len(lost) >= most:
            problems = [f"more than {most} tensors: the others were not read"]
            break
        if id(item) not in known:
            known[id(item)] = _tensor(item, file, storages)
        tensor = known[id(item)]
        if tensor is None:
            lost.append(place)
        else:
            found[place] = tensor
    lost.sort()
    problems += [f"tensor {place}: its bytes are not in the file" for place in lost[:_MOST_SHOWN]]
    if len(lost) > _MOST_SHOWN:
        problems.append(f"{len(lost) - _MOST_SHOWN} more tensors: their bytes are not in the file")
    return dict(sorted(found.items())), problems


def _is_of_other_numbers(made: CallResult, storages: Mapping[str, tuple[int, int]]) -> bool:
    """Whether a tensor's bytes are in the file, but sftctl can't show numbers of their type."""
    storage = made.arguments[0]
    if not _is_storage(storage) or _dtype(storage) is not None:
        return False
    return storages.get(_key_of(storage), (0, -1))[1] >= storage_bytes(storage)


def _key_of(storage: PersistentId) -> str:
    key = storage.key[2]
    return str(key) if isinstance(key, (str, int)) else "?"


def _tensor(
    made: CallResult, file: Path, storages: dict[str, tuple[int, int]]
) -> StoredTensor | None:
    storage, start, shape, strides = made.arguments[:4]
    if not (isinstance(shape, tuple) and isinstance(strides, tuple) and _is_storage(storage)):
        return None
    if (dtype := _dtype(storage)) is None:
        return None
    if len(shape) != len(strides) or len(shape) > MOST_AXES:
        return None
    numbers = (start, *shape, *strides)
    if not all(isinstance(n, int) and 0 <= n < _TOO_LARGE for n in numbers):
        return None
    begin, num_bytes = storages.get(_key_of(storage), (0, -1))
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
