"""A folder that accelerate's `save_state` wrote: weights, optimizer.bin and random states."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from sftctl.inspection.formats.distributed import distcp_problems
from sftctl.inspection.formats.files import OTHER_TOOL, Files, steps_in
from sftctl.inspection.formats.model_files import model_facts, read_weights
from sftctl.inspection.formats.torch_dict import learning_rate_of, optimizer_tensors
from sftctl.inspection.formats.weights import judge_weights
from sftctl.inspection.inspection import Inspection, weights_dtype
from sftctl.inspection.pickles.values import number, plain, table

_RANDOM = re.compile(r"random_states_(\d+)\.pkl")
_NUMBERED = re.compile(r"checkpoint_(\d+)")
_CUSTOM = re.compile(r"custom_checkpoint_\d+\.pkl")
_WEIGHTS = re.compile(r"(model|pytorch_model)(_\d+)?(-\d+-of-\d+)?\.(safetensors|bin)")
_FSDP_WEIGHTS = re.compile(r"pytorch_model(_fsdp)?(_\d+)?(\.bin)?")


def is_accelerate(path: Path) -> bool:
    """Whether `save_state` wrote this folder."""
    if not path.is_dir() or (path / "trainer_state.json").exists():
        return False
    names = {file.name for file in path.iterdir()}
    return any(map(_RANDOM.fullmatch, names)) or {"optimizer.bin", "scheduler.bin"} <= names


def is_accelerate_output(path: Path) -> bool:
    """Whether this is a folder of `checkpoint_N`."""
    return bool(_numbered(path))


def _numbered(path: Path) -> list[Path]:
    return steps_in(path, _NUMBERED, is_accelerate)


def inspect_accelerate_output(path: Path) -> Inspection:
    """The newest `checkpoint_N` in a folder, with all of them in `checkpoints`."""
    checkpoints = [inspect_accelerate(one) for one in _numbered(path)]
    return replace(checkpoints[-1], checkpoints=checkpoints)


def inspect_accelerate(path: Path) -> Inspection:
    """A folder of `save_state`. Step and epoch are known only if the script saved them itself."""
    files = Files.of(path, ("*", "*/*"))
    config = files.read_json("config.json")
    tensors = read_weights(files)
    optimizer = files.read_torch("optimizer.bin")
    tensors |= optimizer_tensors(optimizer.tensors, "state.")
    ranks = sorted(int(m[1]) for name in files.sizes if (m := _RANDOM.fullmatch(name)))
    lost = sorted({*range(max(ranks, default=-1) + 1)} - {*ranks})
    files.problems.extend(f"random_states_{rank}.pkl: missing" for rank in lost)
    folders = {name.partition("/")[0] for name in files.sizes if "/" in name}
    for folder in sorted(folders):
        files.problems.extend(distcp_problems(path / folder))
    top = {name for name in files.sizes if "/" not in name} | folders
    if not any(_WEIGHTS.fullmatch(n) or _FSDP_WEIGHTS.fullmatch(n) for n in top):
        files.problems.append("model.safetensors: missing")
    if not any(name.startswith("optimizer") for name in top):
        files.problems.append("optimizer.bin: missing")
    problems, notes, train = judge_weights(files, config, tensors) if config else ([], [], None)
    files.problems.extend(problems)
    counters, stored = _counters(files)
    facts = model_facts(config) | counters
    facts |= {"learning_rate": learning_rate_of(optimizer.value), "world_size": len(ranks) or None}
    facts["dtype"] = facts.get("dtype") or weights_dtype(tensors)
    if stored:
        facts["config"] = {"stored": stored}
    call = f"accelerator.load_state({str(path)!r}) in the script that saved it continues from it"
    fsdp = next((n for n in sorted(folders) if n.startswith("pytorch_model_fsdp")), None)
    merge = f"`accelerate merge-weights {path / fsdp} {path}-merged`" if fsdp else None
    parts = [call, f"{merge} makes weights of it" if merge else None, train]
    return replace(
        files.inspection(
            "accelerate checkpoint", tensors, "; ".join(part for part in parts if part)
        ),
        facts=facts,
        rng={"ranks": len(ranks), "generators": ["python", "numpy", "torch"], "digests": []}
        if ranks
        else None,
        step_counts=_COUNTS if counters.get("step") is not None else None,
        epoch_counts=_COUNTS if counters.get("epoch") is not None else None,
        obstacles=[OTHER_TOOL],
        notes=notes,
    )


_COUNTS = "as the script stored it: what it counts depends on the script"


def _counters(files: Files) -> tuple[dict[str, Any], dict[str, Any]]:
    """The step and the epoch, and the objects that the script registered.

    The step and the epoch are searched in these objects, and then in the random state of rank 0.
    """
    stored: dict[str, Any] = {}
    for name in sorted(filter(_CUSTOM.fullmatch, files.sizes)):
        value = plain(files.read_torch(name).value)
        if isinstance(value, dict):
            stored[name] = value
    values = [one for one in stored.values()]
    values.append(table(plain(files.read_torch("random_states_0.pkl").value)))
    found = {
        key: next((n for one in values if (n := number(one.get(key))) is not None), None)
        for key in ("step", "epoch")
    }
    return found, stored
