"""A folder of torch.distributed.checkpoint: the pickle `.metadata` and `__RANK_N.distcp` files."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from sftctl.checkpoint.tensor_index import NUMBER_TYPES, Part, StoredTensor
from sftctl.errors import CorruptCheckpoint
from sftctl.inspection.formats.files import OTHER_TOOL, Files
from sftctl.inspection.formats.trainers.sharded import (
    METADATA_NAME,
    no_metadata,
    ranks_of,
    shards_in,
)
from sftctl.inspection.inspection import Inspection, weights_dtype
from sftctl.inspection.pickles.opcodes import CallResult, Name
from sftctl.inspection.pickles.torch_file import read_torch_file
from sftctl.inspection.pickles.values import attributes, key_text, number, plain, size, sizes, table
from sftctl.words import in_shell

_METADATA_NAME = METADATA_NAME
_DTYPES = {known.torch: name for name, known in NUMBER_TYPES.items()}
_LONGEST_VALUE_BYTES = 1 << 16
_MOST_VALUES = 500
_MOST_KEYS = 100  # on the path to one value in the saved dict
_STEP_KEYS = ("step", "global_step", "iteration", "iter_num")
_RATE_KEYS = ("lr", "learning_rate")
_NOTHING_LISTED = f"{_METADATA_NAME} has no list of tensors, so only files are shown"
_CONVERT = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch"

# (name, offsets) of a saved object -> its file, offset and length, as .metadata records them.
Places = dict[tuple[str, tuple[int, ...]], dict[str, Any]]


def is_distributed(path: Path) -> bool:
    """Whether torch.distributed.checkpoint saved this folder, completely or not."""
    return (path / _METADATA_NAME).is_file() or bool(shards_in(path))


def inspect_distributed(path: Path) -> Inspection:
    """The tensors and values that `.metadata` lists. Their places are checked against the files."""
    files = Files.of(path)
    names = shards_in(path)
    if _METADATA_NAME in files.sizes:
        metadata = attributes(files.read_torch(_METADATA_NAME).value)
        if not metadata and not files.problems:
            files.problems.append(f"{_METADATA_NAME}: describes no checkpoint")
    else:
        metadata = {}
        files.problems.append(no_metadata())
    places: Places = {
        (key_text(key.get("fqn")), sizes(key.get("offset"))): attributes(info)
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
            tensors[_grouped(name, planned)] = _tensor(files, name, facts, places)
        elif len(values) < _MOST_VALUES and (name, ()) in places:
            values[name] = _value(files, places[name, ()])
    step_key, epoch_key = _find_number(values, _STEP_KEYS), _find_number(values, ("epoch",))
    ranks = ranks_of(names)
    advice = f"`{_CONVERT} {in_shell(path)} {in_shell(f'{path}.pt')}` makes one file of it"
    return replace(
        files.inspection("torch.distributed checkpoint", tensors, advice),
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
        notes=[_NOTHING_LISTED] if metadata and not places else [],
    )


def distcp_problems(folder: Path) -> list[str]:
    """The problems of a folder of `.distcp` files that lies in the folder of a checkpoint.

    Files can be missing, truncated or unreadable. Each problem begins with the name of `folder`.
    """
    if not is_distributed(folder):
        return []
    found = inspect_distributed(folder).problems
    ranks = ranks_of(shards_in(folder))
    gaps = sorted({*range(max(ranks, default=-1) + 1)} - ranks)
    lost = [f"__{rank}_0.distcp: missing" for rank in gaps]
    problems = dict.fromkeys([*found, *lost])
    return [f"{folder.name}/{problem}" for problem in problems]


def _check_sizes(files: Files, places: Places) -> None:
    """Add a problem for each file that is missing, or too short for the objects listed in it."""
    stretches: dict[str, set[tuple[int, int]]] = {}
    for place in places.values():
        begin = size(place.get("offset"))
        stretch = (begin, begin + size(place.get("length")))
        stretches.setdefault(key_text(place.get("relative_path")), set()).add(stretch)
    for name, listed in stretches.items():
        if name not in files.sizes:
            files.problems.append(f"{name}: missing")
        elif max(end for _, end in listed) > files.sizes[name]:
            files.problems.append(f"{name}: truncated: {files.sizes[name]} bytes")
        elif sum(end - begin for begin, end in listed) > files.sizes[name]:
            files.problems.append(f"{name}: {_METADATA_NAME} lists some of its bytes twice")


def _grouped(name: str, planned: dict[Any, Any]) -> str:
    """The name under `model.` or `optimizer.`, chosen by the first key in the saved dict."""
    path = planned.get(name)
    is_path = isinstance(path, (tuple, list)) and 0 < len(path) < _MOST_KEYS
    keys = [key_text(key) for key in path] if is_path and path else name.split(".")
    first, rest = keys[0], [key for key in keys[1:] if key != "state"]
    if "optim" in first.lower() and rest:
        return f"optimizer.{'.'.join(rest)}"
    is_model = is_path and len(keys) > 1 and "model" in first.lower()
    return f"model.{'.'.join(keys[1:])}" if is_model else f"model.{name}"


def _tensor(files: Files, name: str, facts: dict[str, Any], places: Places) -> StoredTensor:
    dtype = _dtype(facts.get("properties"))
    parts, count = [], 0
    chunks = facts["chunks"] if isinstance(facts["chunks"], (list, tuple)) else ()
    for chunk in map(attributes, chunks):
        offsets, shape = sizes(chunk.get("offsets")), sizes(chunk.get("sizes"))
        place = places.get((name, offsets)) or places.get((name, ()))
        if place is not None and key_text(place.get("relative_path")) in files.sizes:
            file = files.path / key_text(place["relative_path"])
            begin, length = size(place.get("offset")), size(place.get("length"))
            parts.append(Part(file, begin, shape, offsets, archive_bytes=length))
            count += math.prod(shape)
    item_bytes = NUMBER_TYPES[dtype].num_bytes if dtype in NUMBER_TYPES else 0
    num_bytes = count * item_bytes
    return StoredTensor(dtype, sizes(facts.get("size")), count, num_bytes, tuple(parts))


def _dtype(properties: Any) -> str:
    state = properties.state if isinstance(properties, CallResult) else None
    first = state[0] if isinstance(state, tuple) and state else None
    named = first.text.rpartition(".")[2] if isinstance(first, Name) else "?"
    return _DTYPES.get(named, named)


def _value(files: Files, place: dict[str, Any]) -> Any:
    """A number or string that was saved next to the tensors, in a small archive of its own."""
    length, name = size(place.get("length")), key_text(place.get("relative_path"))
    if not length or length > _LONGEST_VALUE_BYTES or name not in files.sizes:
        return None
    file = files.path / name
    try:
        found = read_torch_file(file, size(place.get("offset")), length)
    except CorruptCheckpoint:
        return None
    files.problems.extend(f"{file.name}: {problem}" for problem in found.problems)
    return plain(found.value)


def unpacked(part: Part) -> Part:
    """Where the numbers of a part are inside the part's torch.save archive.

    Raises CorruptCheckpoint.
    """
    found = read_torch_file(part.file, part.begin, part.archive_bytes)
    if "" not in found.tensors:
        raise CorruptCheckpoint(f"{part.file}: no tensor at byte {part.begin}")
    tensor = found.tensors[""]
    if tensor.shape != part.shape:
        raise CorruptCheckpoint(f"{part.file}: a tensor of another shape at byte {part.begin}")
    return replace(tensor.parts[0], offsets=part.offsets)


def _find_number(values: dict[str, Any], keys: tuple[str, ...]) -> str:
    """The shortest name that ends with one of the keys and whose value is a number, or ""."""
    names = (name for name in values if name.rpartition(".")[2] in keys)
    return min((n for n in names if number(values[n]) is not None), key=len, default="")
