"""Folders with torch files for each rank: verl's `global_step_N`, and FSDP's local states."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from sftctl.inspection.formats.files import OTHER_TOOL, Files
from sftctl.inspection.formats.model_files import read_weights
from sftctl.inspection.formats.trainers.sharded import shards_in
from sftctl.inspection.formats.weights import judge_weights
from sftctl.inspection.inspection import Inspection, weights_dtype
from sftctl.words import in_shell

_VERL = re.compile(r"(model|optim|extra_state)_world_size_(\d+)_rank_(\d+)\.pt")
_ANY = re.compile(r"(.+?)[._-]rank[._-]?(\d+)((?:\.(?:pt|pth|bin|ckpt))?)")
_STEP = re.compile(r"(?:global_steps?|step)[_-]?(\d+)")
_ROLES = ("actor", "critic", "reward", "ref")
_TRACKER = "latest_checkpointed_iteration.txt"


def is_verl(path: Path) -> bool:
    """Whether this is the folder of a verl step, or of one role in it, such as `actor`."""
    return path.is_dir() and any(_verl_folders(path))


def is_verl_output(path: Path) -> bool:
    """Whether this is a folder of verl steps (`global_step_N`)."""
    return bool(_steps(path))


def _steps(path: Path) -> list[Path]:
    entries = path.iterdir() if path.is_dir() else ()
    found = {int(m[1]): one for one in entries if (m := _STEP.fullmatch(one.name))}
    return [found[step] for step in sorted(found) if is_verl(found[step])]


def _verl_folders(path: Path) -> Iterator[Path]:
    """The folders with files of ranks: `path` itself, or the folders of roles in it."""
    for folder in (path, *(path / role for role in _ROLES)):
        if folder.is_dir() and any(_VERL.fullmatch(file.name) for file in folder.iterdir()):
            yield folder


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
        problem = f"global_step_{named}: missing, {_TRACKER} names it"
        found = replace(found, problems=[*found.problems, problem], complete=False, advice=None)
        checkpoints[-1] = found
    return replace(found, checkpoints=checkpoints)


def inspect_verl(path: Path) -> Inspection:
    """One step of verl: for each role, up to three files of every rank, and the model's
    configuration.
    """
    files = Files.of(path, ("*", "*/*", "*/*/*"))
    folders = list(_verl_folders(path))
    world = 0
    for folder in folders:
        below = "" if folder == path else f"{folder.name}/"
        matches = [m for file in folder.iterdir() if (m := _VERL.fullmatch(file.name))]
        size = max(int(m[2]) for m in matches)
        world = max(world, size)
        there = {m[0] for m in matches}
        kinds = {m[1] for m in matches}
        # Without an exported model, the model files must be there; a run may save no optimizer.
        if not _exported(folder):
            kinds.add("model")
        wanted = [f"{k}_world_size_{size}_rank_{r}.pt" for k in sorted(kinds) for r in range(size)]
        files.problems.extend(f"{below}{name}: missing" for name in wanted if name not in there)
    actor = next((one for one in folders if one.name == "actor"), folders[0])
    below = "" if actor == path else f"{actor.name}/"
    tensors = {
        f"model.{name}": tensor
        for name, tensor in files.read_torch(
            f"{below}model_world_size_{world}_rank_0.pt"
        ).tensors.items()
        if not name.startswith("optimizer")
    }
    step = _STEP.fullmatch(path.absolute().name) or _STEP.fullmatch(path.absolute().parent.name)
    facts = {
        "step": int(step[1]) if step else None,
        "world_size": world,
        "dtype": weights_dtype(tensors),
    }
    advice, notes = _verl_advice(actor)
    return replace(
        files.inspection(
            f"verl checkpoint ({', '.join(f.name for f in folders)})", tensors, advice
        ),
        facts=facts,
        step_counts="steps of verl's trainer (its folder's name)" if step else None,
        obstacles=[OTHER_TOOL],
        notes=[*(["the parameters are those of rank 0 alone"] if tensors else []), *notes],
    )


def _exported(folder: Path) -> bool:
    """Whether the model of a role was exported for Hugging Face too."""
    return any((folder / "huggingface").glob("*.safetensors"))


def _verl_advice(actor: Path) -> tuple[str, list[str]]:
    """The advice and notes: train from the exported model if there is one, else merge the ranks."""
    model = actor / "huggingface"
    merge = (
        f"`python -m verl.model_merger merge --backend fsdp --local_dir {in_shell(actor)} "
        f"--target_dir {in_shell(f'{actor}-merged')}` makes weights of it; this needs verl"
    )
    if model.is_dir():
        files = Files.of(model)
        weights = read_weights(files)
        problems, notes, train = judge_weights(files, files.read_json("config.json"), weights)
        if train and not problems and not files.problems:
            return train, []
    return merge, []


def is_per_rank(path: Path) -> bool:
    """Whether this folder has torch files whose names differ only in the number of a rank."""
    return path.is_dir() and not shards_in(path) and bool(_groups(path))


def _groups(path: Path) -> dict[tuple[str, str], set[int]]:
    """(text before the rank's number, text after it) -> the ranks that have such a file."""
    groups: dict[tuple[str, str], set[int]] = {}
    for file in path.iterdir():
        if file.is_file() and (match := _ANY.fullmatch(file.name)):
            groups.setdefault((match[1], match[3]), set()).add(int(match[2]))
    return {key: ranks for key, ranks in groups.items() if key[1] and not _is_state(key[0])}


def _is_state(name: str) -> bool:
    return name.startswith(("rng_state", "random_states"))


def inspect_per_rank(path: Path) -> Inspection:
    """FSDP's local states, one file for each rank. A missing file is a problem."""
    files = Files.of(path)
    groups = _groups(path)
    world = max(max(ranks) + 1 for ranks in groups.values())
    names = {file.name for file in path.iterdir()}
    first = ""
    for (before, after), ranks in sorted(groups.items()):
        for rank in sorted({*range(world)} - ranks):
            files.problems.append(f"{before}, rank {rank}{after}: missing")
        sample = next(n for n in sorted(names) if (m := _ANY.fullmatch(n)) and m[1] == before)
        first = first or sample
    found = files.read_torch(first)
    tensors = {f"model.{name}": tensor for name, tensor in found.tensors.items()}
    steps = [int(digits) for before, _ in groups for digits in re.findall(r"(\d+)$", before)]
    return replace(
        files.inspection(
            "one torch file for each rank (FSDP's local states)",
            tensors,
            f"`sftctl inspect-ckpt {in_shell(path / first)}` shows one rank's file",
        ),
        facts={
            "step": max(steps, default=None),
            "world_size": world,
            "dtype": weights_dtype(tensors),
        },
        step_counts="the number in the files' names" if steps else None,
        obstacles=[OTHER_TOOL],
        notes=["the parameters are those of one rank; only its own trainer puts them together"],
    )
