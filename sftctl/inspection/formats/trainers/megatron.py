"""Megatron-LM's `iter_N`: a folder for each rank, or `.distcp` files and `common.pt`."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from sftctl.inspection.formats.distributed import inspect_distributed
from sftctl.inspection.formats.files import OTHER_TOOL, Files
from sftctl.inspection.formats.torch_dict import learning_rate_of
from sftctl.inspection.formats.trainers.sharded import METADATA_NAME, no_metadata, shards_in
from sftctl.inspection.formats.weights import show_tensors
from sftctl.inspection.inspection import Inspection, weights_dtype
from sftctl.inspection.pickles.values import attributes, number, plain, table
from sftctl.words import printable

TRACKER = "latest_checkpointed_iteration.txt"
_ITERATION = re.compile(r"iter_(\d+)|release")
_RANK = re.compile(r"mp_rank_(\d+)(_(\d+))?(_(\d+))?")
_WEIGHTS = ("model_optim_rng.pt", "model_rng.pt", "model_optim_rng.pth", "model.pt")
_COMMON = "common.pt"
_DESCRIPTION = "metadata.json"
_LONGEST_DESCRIPTION = 1 << 16
_COUNTS = "iterations: optimizer updates"


def is_megatron(path: Path) -> bool:
    """Whether this is the folder of one iteration, in either layout."""
    return path.is_dir() and (bool(_rank_folders(path)) or _is_sharded(path))


def is_megatron_output(path: Path) -> bool:
    """Whether this is a folder of iterations."""
    return bool(_iterations(path))


def _iterations(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    found = [one for one in path.iterdir() if _ITERATION.fullmatch(one.name) and is_megatron(one)]
    return sorted(found, key=lambda one: (one.name != "release", one.name))


_LONGEST_NAME = 100  # characters of the tracker file that are read


def _is_sharded(path: Path) -> bool:
    """Whether megatron.core.dist_checkpointing wrote the folder, even if `common.pt` is missing."""
    has_shards = (path / METADATA_NAME).is_file() or bool(shards_in(path))
    if (path / _COMMON).is_file():
        return has_shards or (path / _DESCRIPTION).is_file()
    return has_shards and (_is_described(path) or _step_in(path) is not None)


def _is_described(path: Path) -> bool:
    """Whether a file in the folder names megatron.core.dist_checkpointing's backend."""
    file = path / _DESCRIPTION
    if not file.is_file() or file.stat().st_size > _LONGEST_DESCRIPTION:
        return False
    return b'"sharded_backend"' in file.read_bytes()


def inspect_megatron_output(path: Path) -> Inspection:
    """The iteration that the tracker file names, with all iterations in `checkpoints`."""
    iterations = _iterations(path)
    file = path / TRACKER
    named = file.read_text(errors="replace").strip() if file.is_file() else ""
    named = printable(named[:_LONGEST_NAME])
    wanted = f"iter_{int(named):07d}" if re.fullmatch(r"[0-9]{1,18}", named) else named
    chosen = next((one for one in iterations if one.name == wanted), iterations[-1])
    checkpoints = [inspect_megatron(one) for one in iterations]
    found = checkpoints[iterations.index(chosen)]
    if named and chosen.name != wanted:
        problem = f"../{wanted}: missing, but {TRACKER} names it"
        found = replace(found, problems=[*found.problems, problem], complete=False, advice=None)
        checkpoints[iterations.index(chosen)] = found
    return replace(found, checkpoints=checkpoints)


def inspect_megatron(path: Path) -> Inspection:
    """One iteration: its ranks, its step, and missing files."""
    if _rank_folders(path):
        return _inspect_ranks(path)
    is_plain = not (path / _COMMON).is_file() and not _is_described(path)
    return _inspect_plain(path) if is_plain else _inspect_sharded(path)


def _inspect_plain(path: Path) -> Inspection:
    """An iteration in the format torch_dcp. It has no files of Megatron itself."""
    found = inspect_distributed(path)
    step = found.facts.get("step")
    return replace(
        found,
        format="Megatron checkpoint (torch_dcp)",
        facts={**found.facts, "step": _step_in(path) if step is None else step},
        step_counts=_COUNTS,
        notes=[*found.notes, _continue(path)],
    )


def _inspect_ranks(path: Path) -> Inspection:
    files = Files.of(path, ("*", "*/*"))
    folders = _rank_folders(path)
    name = next((n for folder in folders for n in _weights_in(folder)), _WEIGHTS[0])
    found = files.read_torch(f"{folders[0].name}/{name}")
    value = table(found.value)
    arguments = attributes(value.get("args"))
    for folder in folders:
        there = _weights_in(folder)
        if not there:
            files.problems.append(f"{folder.name}/{name}: missing")
        elif folder != folders[0]:
            files.read_torch(f"{folder.name}/{there[0]}")
    lost = _lost_ranks(folders, arguments)
    files.problems.extend(f"{one}/{name}: missing" for one in lost)
    tensors = {
        f"model.{name.removeprefix('model.')}": tensor
        for name, tensor in found.tensors.items()
        if name.startswith("model") and tensor.num_elements
    }
    facts = _facts(path, number(value.get("iteration")), arguments, tensors)
    facts["world_size"] = facts["world_size"] or len(folders) + len(lost)
    facts["learning_rate"] = learning_rate_of(table(value.get("optimizer")).get("optimizer"))
    return replace(
        files.inspection(
            "Megatron checkpoint (a folder for each rank)", tensors, show_tensors(path)
        ),
        facts=facts,
        step_counts=_COUNTS,
        obstacles=[OTHER_TOOL],
        notes=[f"the parameters are those of {folders[0].name} alone", _continue(path)],
    )


def _facts(
    path: Path, step: int | None, arguments: dict[str, Any], tensors: dict[str, Any]
) -> dict[str, Any]:
    """Facts from Megatron's arguments, which are stored in both layouts."""
    return {
        "step": step if step is not None else _step_in(path),
        "total_steps": number(arguments.get("train_iters")),
        "examples_seen": number(arguments.get("consumed_train_samples")),
        "global_batch_size": number(arguments.get("global_batch_size")),
        "world_size": number(arguments.get("world_size")),
        "dtype": weights_dtype(tensors),
        "config": {"args": plain(arguments)} if arguments else None,
    }


def _weights_in(folder: Path) -> list[str]:
    return [name for name in _WEIGHTS if (folder / name).is_file()]


def _inspect_sharded(path: Path) -> Inspection:
    files = Files.of(path, ("*", "*/*"))
    has_shards = bool(shards_in(path)) or (path / METADATA_NAME).is_file()
    if (path / METADATA_NAME).is_file():
        found = inspect_distributed(path)
        files.problems.extend(found.problems)
        tensors: dict[str, Any] = dict(found.tensors)
    else:
        tensors = {}
        files.problems.extend([no_metadata()] if has_shards else [])
    if not (path / _COMMON).is_file():
        files.problems.append(f"{_COMMON}: missing")
    common = table(files.read_torch(_COMMON).value)
    arguments = attributes(common.get("args"))
    backend = files.read_json(_DESCRIPTION).get("sharded_backend", "torch_dist")
    if backend == "torch_dist" and not has_shards:
        files.problems.append(f"{METADATA_NAME}: missing, and all .distcp files")
    facts = _facts(path, number(common.get("iteration")), arguments, tensors)
    return replace(
        files.inspection(f"Megatron checkpoint ({backend})", tensors, show_tensors(path)),
        facts=facts,
        step_counts=_COUNTS,
        obstacles=[OTHER_TOOL],
        notes=[_continue(path)],
    )


def _rank_folders(path: Path) -> list[Path]:
    entries = path.iterdir() if path.is_dir() else ()
    return sorted(one for one in entries if one.is_dir() and _RANK.fullmatch(one.name))


def _lost_ranks(folders: list[Path], arguments: dict[str, Any]) -> list[str]:
    """The missing folders, by the stored parallel sizes, or else by gaps in the numbers."""
    matches = [m for one in folders if (m := _RANK.fullmatch(one.name))]
    tensor = {int(m[1]) for m in matches}
    pipeline = {int(m[3]) for m in matches if m[3]}
    stored = [
        number(arguments.get(f"{kind}_model_parallel_size")) for kind in ("tensor", "pipeline")
    ]
    rows = max(int(stored[0] or 0), max(tensor, default=0) + 1)
    stages = max(int(stored[1] or 0), max(pipeline, default=0) + 1)
    if any(m[5] for m in matches):  # expert parallel: the third number depends on the others
        return []
    names = {one.name for one in folders}
    if pipeline:
        wanted = [f"mp_rank_{t:02d}_{p:03d}" for t in range(rows) for p in range(stages)]
    else:
        wanted = [f"mp_rank_{t:02d}" for t in range(rows)]
    return [name for name in wanted if name not in names]


def _step_in(path: Path) -> int | None:
    match = _ITERATION.fullmatch(path.absolute().name)
    return int(match[1]) if match and match[1] else None


def _continue(path: Path) -> str:
    return f"Megatron's own training script continues from it with --load {path.absolute().parent}"
