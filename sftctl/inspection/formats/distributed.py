"""A folder of torch.distributed.checkpoint: `.metadata`, a pickle, and `__RANK_N.distcp` files."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from sftctl.checkpoint.tensor_index import Part, StoredTensor
from sftctl.errors import CorruptCheckpoint
from sftctl.inspection.formats.files import read_torch, report_of
from sftctl.inspection.pickles.numbers import ITEM_BYTES
from sftctl.inspection.pickles.opcodes import Made, Name
from sftctl.inspection.pickles.torch_file import read_torch_file
from sftctl.inspection.pickles.values import attributes, number, plain, table
from sftctl.inspection.report import Report

METADATA_NAME = ".metadata"
_DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "bool": "BOOL",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}
_LONGEST_VALUE_BYTES = 1 << 16
_MOST_VALUES = 500
_STEPS = ("step", "global_step", "iteration", "iter_num")


def inspect_distributed(path: Path) -> Report:
    """What `.metadata` says, and whether every stretch that it speaks of is there."""
    report = report_of(path, "torch.distributed checkpoint")
    metadata = attributes(read_torch(report, METADATA_NAME).value)
    places = {
        (key.get("fqn"), tuple(key.get("offset") or ())): attributes(info)
        for made, info in table(metadata.get("storage_data")).items()
        for key in [attributes(made)]
    }
    for place in places.values():
        _check(report, place)
    planned = table(metadata.get("planner_data"))
    values: dict[str, Any] = {}
    for name, entry in table(metadata.get("state_dict_metadata")).items():
        if not isinstance(name, str):
            continue
        facts = attributes(entry)
        if "chunks" in facts:
            report.tensors[_grouped(name, planned)] = _tensor(path, name, facts, places)
        elif len(values) < _MOST_VALUES and (name, ()) in places:
            values[name] = _value(report, places[name, ()])
    _tell(report, values)
    if not places:
        report.notes.append(
            f"what {METADATA_NAME} says is not known: names and sizes of files only"
        )
    return report


def _check(report: Report, place: dict[str, Any]) -> None:
    """Add a problem where a stretch is not in its file, once for a file."""
    name = str(place.get("relative_path"))
    there = report.files.get(name)
    end = (number(place.get("offset")) or 0) + (number(place.get("length")) or 0)
    problem = None
    if there is None:
        problem = f"{name}: missing"
    elif end > there["num_bytes"]:
        problem = f"{name}: cut: {there['num_bytes']} bytes"
    if problem and problem not in report.problems:
        report.problems.append(problem)
        report.complete = False


def _grouped(name: str, planned: dict[Any, Any]) -> str:
    """The name under its group: the first key of the saved dictionary tells which it is."""
    path = planned.get(name)
    keys = [str(key) for key in path] if isinstance(path, (tuple, list)) else name.split(".")
    first, rest = keys[0], [key for key in keys[1:] if key != "state"]
    if "optim" in first.lower() and rest:
        return f"optimizer.{'.'.join(rest)}"
    is_model = isinstance(path, (tuple, list)) and len(keys) > 1 and "model" in first.lower()
    return f"model.{'.'.join(keys[1:])}" if is_model else f"model.{name}"


def _tensor(
    path: Path, name: str, facts: dict[str, Any], places: dict[Any, dict[str, Any]]
) -> StoredTensor:
    dtype = _dtype(facts.get("properties"))
    parts, count = [], 0
    for chunk in map(attributes, facts.get("chunks") or ()):
        offsets, sizes = tuple(chunk.get("offsets") or ()), tuple(chunk.get("sizes") or ())
        place = places.get((name, offsets)) or places.get((name, ()))
        if place is not None:
            file = path / str(place.get("relative_path"))
            begin, length = number(place.get("offset")) or 0, number(place.get("length"))
            parts.append(Part(file, begin, sizes, offsets, archive_bytes=length))
            count += math.prod(sizes)
    size = facts.get("size")
    shape = tuple(size) if isinstance(size, (tuple, list)) else ()
    return StoredTensor(dtype, shape, count, count * ITEM_BYTES.get(dtype, 0), tuple(parts))


def _dtype(properties: Any) -> str:
    state = properties.state if isinstance(properties, Made) else None
    first = state[0] if isinstance(state, tuple) and state else None
    named = first.text.rpartition(".")[2] if isinstance(first, Name) else "?"
    return _DTYPES.get(named, named)


def _value(report: Report, place: dict[str, Any]) -> Any:
    """A number or text that was saved beside the tensors, in a small archive of its own."""
    length = number(place.get("length"))
    file = report.path / str(place.get("relative_path"))
    if not length or length > _LONGEST_VALUE_BYTES or file.name not in report.files:
        return None
    try:
        found = read_torch_file(file, number(place.get("offset")) or 0, length)
    except CorruptCheckpoint:
        return None
    report.problems += [f"{file.name}: {problem}" for problem in found.problems]
    return plain(found.value)


def unpacked(part: Part) -> Part:
    """The part itself, out of the torch.save archive that it lies in; raises CorruptCheckpoint."""
    found = read_torch_file(part.file, part.begin, part.archive_bytes)
    if "" not in found.tensors:
        raise CorruptCheckpoint(f"{part.file}: no tensor at byte {part.begin}")
    return replace(found.tensors[""].parts[0], offsets=part.offsets)


def _tell(report: Report, values: dict[str, Any]) -> None:
    def found(names: tuple[str, ...]) -> tuple[str, Any] | tuple[None, None]:
        hits = [key for key in values if key.rpartition(".")[2] in names]
        key = min((k for k in hits if number(values[k]) is not None), key=len, default=None)
        return (key, values[key]) if key is not None else (None, None)

    step_key, step = found(_STEPS)
    epoch_key, epoch = found(("epoch",))
    _, rate = found(("lr", "learning_rate"))
    ranks = {name.split("_")[2] for name in report.files if name.startswith("__")}
    report.facts |= {"step": step, "epoch": epoch, "world_size": len(ranks) or None}
    report.facts |= {
        "dtype": report.weights_dtype,
        "config": {"stored": values} if values else None,
    }
    report.facts["learning_rate"] = rate
    report.step_counts = step_key and f"as stored under {step_key!r}"
    report.epoch_counts = epoch_key and f"as stored under {epoch_key!r}"
    report.obstacles.append("sftctl resumes its own runs only")
    report.advice = "torch.distributed.checkpoint.load reads it into tensors of the same names"
