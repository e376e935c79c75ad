"""Checkpoints of verl, `global_step_N`. Each role has FSDP's files of each rank, or Megatron's
folders.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from sftctl.checkpoint.tensor_index import StoredTensor
from sftctl.inspection.formats.files import OTHER_TOOL, Files, steps_in
from sftctl.inspection.formats.model_files import read_weights
from sftctl.inspection.formats.trainers.megatron import inspect_megatron, is_megatron
from sftctl.inspection.formats.weights import judge_weights
from sftctl.inspection.inspection import Inspection, weights_dtype
from sftctl.words import in_shell

_FILE = re.compile(r"(model|optim|extra_state)_world_size_(\d+)_rank_(\d+)\.pt")
_STEP = re.compile(r"(?:global_steps?|step)[_-]?(\d+)")
_ROLES = ("actor", "critic", "reward", "ref")
_TRACKER = "latest_checkpointed_iteration.txt"
_BY_MEGATRON = (
    "model/dist_ckpt", "dist_ckpt", "model", "optimizer/dist_ckpt", "extra/dist_ckpt",
)  # fmt: skip
"""The paths of Megatron's folders in the folder of a role, in three versions of verl. Weights come
first.
"""
_EXPORTS = ("huggingface", "model/huggingface")


def is_verl(path: Path) -> bool:
    """Whether this is verl's folder of a step, or of one role in it."""
    return path.is_dir() and any(_roles(path))


def is_verl_output(path: Path) -> bool:
    """Whether this is a folder of `global_step_N`."""
    return bool(_steps(path))


def _steps(path: Path) -> list[Path]:
    return steps_in(path, _STEP, is_verl)


def _roles(path: Path) -> Iterator[Path]:
    """The folder itself or the folders of its roles, if such a folder has FSDP's files or
    Megatron's folders.
    """
    for folder in (path, *(path / role for role in _ROLES)):
        if folder.is_dir() and (_names(folder) or _of_megatron(folder)):
            yield folder


def _names(folder: Path) -> list[re.Match[str]]:
    """The names of FSDP's files of each rank."""
    return [match for file in folder.iterdir() if (match := _FILE.fullmatch(file.name))]


def _of_megatron(folder: Path) -> list[Path]:
    """Megatron's folders in the folder of a role. None for an iteration of Megatron itself."""
    return [inner for name in _BY_MEGATRON if is_megatron(inner := folder / name)]


def inspect_verl_output(path: Path) -> Inspection:
    """The step that the tracker file names, else the newest, with all steps in `checkpoints`."""
    steps = _steps(path)
    checkpoints = [inspect_verl(one) for one in steps]
    file = path / _TRACKER
    named = file.read_text(errors="replace").strip() if file.is_file() else ""
    names = [one.name for one in steps]
    index = names.index(f"global_step_{named}") if f"global_step_{named}" in names else -1
    found = checkpoints[index]
    if named and index == -1 and named.isdigit():
        problem = f"global_step_{named}: missing, but {_TRACKER} names it"
        found = replace(found, problems=[*found.problems, problem], complete=False, advice=None)
        checkpoints[-1] = found
    return replace(found, checkpoints=checkpoints)


def inspect_verl(path: Path) -> Inspection:
    """One step: the files of each rank for each role, and the model's configuration."""
    files = Files.of(path, ("*", "*/*", "*/*/*", "*/*/*/*"))
    folders = list(_roles(path))
    actor = next((one for one in folders if one.name == "actor"), folders[0])
    by_megatron = bool(_of_megatron(actor))
    worlds = {folder: _check_role(files, folder) for folder in folders}
    tensors = _first_weights(files, actor, worlds[actor])
    step = _STEP.fullmatch(path.absolute().name) or _STEP.fullmatch(path.absolute().parent.name)
    facts = {
        "step": int(step[1]) if step else None,
        "world_size": max(worlds.values()) or None,
        "dtype": weights_dtype(tensors),
    }
    advice, notes = _advice(actor, "megatron" if by_megatron else "fsdp")
    kind = f"{', '.join(f.name for f in folders)}{'; Megatron' if by_megatron else ''}"
    of_rank_0 = ["the parameters are those of rank 0 alone"] if tensors and not by_megatron else []
    return replace(
        files.inspection(f"verl checkpoint ({kind})", tensors, advice),
        facts=facts,
        step_counts="steps of verl's trainer (its folder's name)" if step else None,
        obstacles=[OTHER_TOOL],
        notes=[*of_rank_0, *notes],
    )


def _check_role(files: Files, folder: Path) -> int:
    """Record the missing files of a role. Returns the number of its ranks, or 0 if unknown."""
    below = "" if folder == files.path else f"{folder.name}/"
    for inner in _of_megatron(folder):
        place = f"{below}{inner.relative_to(folder)}/"
        known = {*files.problems}
        found = (f"{place}{problem}" for problem in inspect_megatron(inner).problems)
        files.problems.extend(one for one in found if one not in known)
    matches = _names(folder)
    if not matches:
        return 0
    size = max(int(m[2]) for m in matches)
    there = {m[0] for m in matches}
    kinds = {m[1] for m in matches}
    if not _exported(folder):  # a run may save no optimizer, or only the exported model
        kinds.add("model")
    wanted = [f"{k}_world_size_{size}_rank_{r}.pt" for k in sorted(kinds) for r in range(size)]
    files.problems.extend(f"{below}{name}: missing" for name in wanted if name not in there)
    return size


def _first_weights(files: Files, actor: Path, world: int) -> dict[str, StoredTensor]:
    """The weights of rank 0, or all weights in Megatron's folder."""
    if inner := _of_megatron(actor):
        return dict(inspect_megatron(inner[0]).tensors)
    below = "" if actor == files.path else f"{actor.name}/"
    found = files.read_torch(f"{below}model_world_size_{world}_rank_0.pt").tensors.items()
    return {f"model.{name}": one for name, one in found if not name.startswith("optimizer")}


def _exported(folder: Path) -> bool:
    """Whether the model of a role was exported for Hugging Face too."""
    return any(any((folder / name).glob("*.safetensors")) for name in _EXPORTS)


def _advice(actor: Path, backend: str) -> tuple[str, list[str]]:
    """The advice and notes: train from the exported model if there is one, else merge the ranks."""
    merge = (
        f"`python -m verl.model_merger merge --backend {backend} --local_dir {in_shell(actor)} "
        f"--target_dir {in_shell(f'{actor}-merged')}` makes weights of it; this needs verl"
    )
    for model in (actor / name for name in _EXPORTS):
        if model.is_dir():
            files = Files.of(model)
            weights = read_weights(files)
            problems, notes, train = judge_weights(files, files.read_json("config.json"), weights)
            if train and not problems and not files.problems:
                return train, notes
    return merge, []
