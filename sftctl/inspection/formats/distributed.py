"""A folder of torch.distributed.checkpoint: `.metadata`, a pickle, and `__RANK_N.distcp` files."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from sftctl.checkpoint.tensor_index import NUMBER_TYPES, Part, StoredTensor
from sftctl.errors import CorruptCheckpoint
from sftctl.inspection.formats.files import OTHER_TOOL, Files
from sftctl.inspection.inspection import Inspection, weights_dtype
from sftctl.inspection.pickles.opcodes import Made, Name
from sftctl.inspection.pickles.torch_file import read_torch_file
from sftctl.inspection.pickles.values import attributes, number, plain, size, sizes, table

_METADATA_NAME = ".metadata"
_DTYPES = {known.torch: name for name, known in NUMBER_TYPES.items()}
_LONGEST_VALUE_BYTES = 1 << 16
_MOST_VALUES = 500
_STEP_KEYS = ("step", "global_step", "iteration", "iter_num")
_RATE_KEYS = ("lr", "learning_rate")
_NOTHING_LISTED = f"{_METADATA_NAME} has no list of tensors: names and sizes of files only"
_ADVICE = "torch.distributed.checkpoint.load reads it into tensors of the same names"

# Where .metadata says each saved object is, by (name, offsets): file, offset, length.
Places = dict[tuple[str, tuple[int, ...]], dict[str, Any]]


def is_distributed(path: Path) -> bool:
    """Whether this is a folder that torch.distributed.checkpoint saved."""
    return (path / _METADATA_NAME).is_file()


def inspect_distributed(path: Path) -> Inspection:
    """The tensors and values that `.metadata` lists, each checked against its file's size."""
    files = Files.of(path)
    metadata = attributes(files.read_torch(_METADATA_NAME).value)
    places: Places = {
        (str(key.get("fqn")), sizes(key.get("offset"))): attributes(info)
        for made, info in table(metadata.get("storage_data")).items()
        for key in [attributes(made)]
    }
    _check_sizes(files, places)
    planned = table(metadata.get("planner_data"))
    tensors: dict[str, StoredTensor] = {}
    values: dict[str, Any] = {}
    for name, entry in table(metadata.get("state_dict_metadata")).items():
        if not isinstance(name, str):
            continue
        facts = attributes(entry)
        if "chunks" in facts:
            tensors[_grouped(name, planned)] = _tensor(path, name, facts, places)
        elif len(values) < _MOST_VALUES and (name, ()) in places:
            values[name] = _value(files, places[name, ()])
    step_key, epoch_key = _find_number(values, _STEP_KEYS), _find_number(values, ("epoch",))
    ranks = {name.split("_")[2] for name in files.sizes if name.startswith("__")}
    return replace(
        files.inspection("torch.distributed checkpoint", tensors, _ADVICE),
        facts={
            "step": values.get(step_key),
            "epoch": values.get(epoch_key),
            "learning_rate": values.get(_find_number(values, _RATE_KEYS)),
            "world_size": len(ranks) or None,
            "dtype": weights_dtype(tensors),
            "config": {"stored": values} if values else None,
        },
        step_counts=f"as stored under {step_key!r}" if step_key else None,
        epoch_counts=f"as stored under {epoch_key!r}" if epoch_key else None,
        obstacles=[OTHER_TOOL],
        notes=[] if places else [_NOTHING_LISTED],
    )


def _check_sizes(files: Files, places: Places) -> None:
    """Add a problem for each file that is missing or too short for what is listed in it."""
    ends: dict[str, int] = {}
    for place in places.values():
        name = str(place.get("relative_path"))
        end = size(place.get("offset")) + size(place.get("length"))
        ends[name] = max(end, ends.get(name, 0))
    for name, end in ends.items():
        if name not in files.sizes:
            files.problems.append(f"{name}: missing")
        elif end > files.sizes[name]:
            files.problems.append(f"{name}: truncated: {files.sizes[name]} bytes")


def _grouped(name: str, planned: dict[Any, Any]) -> str:
    """The name under `model.` or `optimizer.`, by the first key in the saved dictionary."""
    path = planned.get(name)
    keys = [str(key) for key in path] if isinstance(path, (tuple, list)) else name.split(".")
    first, rest = keys[0], [key for key in keys[1:] if key != "state"]
    if "optim" in first.lower() and rest:
        return f"optimizer.{'.'.join(rest)}"
    is_model = isinstance(path, (tuple, list)) and len(keys) > 1 and "model" in first.lower()
    return f"model.{'.'.join(keys[1:])}" if is_model else f"model.{name}"


def _tensor(path: Path, name: str, facts: dict[str, Any], places: Places) -> StoredTensor:
    dtype = _dtype(facts.get("properties"))
    parts, count = [], 0
    chunks = facts["chunks"] if isinstance(facts["chunks"], (list, tuple)) else ()
    for chunk in map(attributes, chunks):
        offsets, shape = sizes(chunk.get("offsets")), sizes(chunk.get("sizes"))
        place = places.get((name, offsets)) or places.get((name, ()))
        if place is not None:
            file = path / str(place.get("relative_path"))
            begin, length = size(place.get("offset")), size(place.get("length"))
            parts.append(Part(file, begin, shape, offsets, archive_bytes=length))
            count += math.prod(shape)
    item_bytes = NUMBER_TYPES[dtype].num_bytes if dtype in NUMBER_TYPES else 0
    num_bytes = count * item_bytes
    return StoredTensor(dtype, sizes(facts.get("size")), count, num_bytes, tuple(parts))


def _dtype(properties: Any) -> str:
    state = properties.state if isinstance(properties, Made) else None
    first = state[0] if isinstance(state, tuple) and state else None
    named = first.text.rpartition(".")[2] if isinstance(first, Name) else "?"
    return _DTYPES.get(named, named)


def _value(files: Files, place: dict[str, Any]) -> Any:
    """A number or text that was saved next to the tensors, in its own small archive."""
    length = size(place.get("length"))
    file = files.path / str(place.get("relative_path"))
    if not length or length > _LONGEST_VALUE_BYTES or file.name not in files.sizes:
        return None
    try:
        found = read_torch_file(file, size(place.get("offset")), length)
    except CorruptCheckpoint:
        return None
    files.problems.extend(f"{file.name}: {problem}" for problem in found.problems)
    return plain(found.value)


def unpacked(part: Part) -> Part:
    """The part without the torch.save archive around it; raises CorruptCheckpoint."""
    found = read_torch_file(part.file, part.begin, part.archive_bytes)
    if "" not in found.tensors:
        raise CorruptCheckpoint(f"{part.file}: no tensor at byte {part.begin}")
    return replace(found.tensors[""].parts[0], offsets=part.offsets)


def _find_number(values: dict[str, Any], keys: tuple[str, ...]) -> str:
    """The shortest name whose last part is one of the keys and whose value is a number, or ""."""
    names = (name for name in values if name.rpartition(".")[2] in keys)
    return min((n for n in names if number(values[n]) is not None), key=len, default="")
