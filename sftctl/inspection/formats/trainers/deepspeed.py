"""A folder that DeepSpeed saved: `global_stepN` with files of each rank, and `latest`."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sftctl.checkpoint.tensor_index import StoredTensor
from sftctl.inspection.formats.files import OTHER_TOOL, Files
from sftctl.inspection.formats.torch_dict import learning_rate_of, optimizer_tensors
from sftctl.inspection.inspection import Inspection, weights_dtype
from sftctl.inspection.pickles.values import number, table
from sftctl.words import in_shell

_OPTIMIZER = re.compile(r"(bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
_SHARDED = re.compile(r"(bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_model_states\.pt")
_WHOLE = re.compile(r"mp_rank_(\d+)_model_states\.pt")
_LAYER = re.compile(r"layer_\d+-model_\d+-model_states\.pt")
_EXPERT = re.compile(r"(layer_\d+_)?expert_\d+_mp_rank_\d+_model_states\.pt")
_STEP = re.compile(r"global_step(\d+)")
_LATEST, _SCRIPT = "latest", "zero_to_fp32.py"
_LONGEST_NAME = 255
_UNIVERSAL = "universal"
_PARAMETER = "fp32.pt"  # in a universal checkpoint: the weight of one parameter
_TAKE_MODULE = 'import sys, torch; torch.save(torch.load(sys.argv[1])["module"], sys.argv[2])'


@dataclass(frozen=True, slots=True)
class ZeroState:
    """The content of the folder of one tag. A tag is DeepSpeed's word for a name such as
    `global_stepN`.
    """

    stage: str  # "ZeRO-2", "ZeRO-1 or 2", "universal", …
    ranks: int
    facts: dict[str, Any]
    tensors: dict[str, StoredTensor]
    missing: list[str]


def is_deepspeed(path: Path) -> bool:
    """Whether this is the folder of a tag, or the folder that contains such folders."""
    return path.is_dir() and bool(_tag_names(path) or tags_in(path))


def tags_in(path: Path) -> list[Path]:
    """The folders of tags in this folder, the smallest step first."""
    if not path.is_dir():
        return []
    found = [inner for inner in path.iterdir() if inner.is_dir() and _tag_names(inner)]
    return sorted(found, key=lambda one: (_step_in(one.name) or 0, one.name))


def inspect_deepspeed(path: Path) -> Inspection:
    """The tag that `latest` names, else the newest tag: its ranks, step and missing files."""
    tags = tags_in(path)
    named = latest_tag(path)
    tag = path if _tag_names(path) else next((t for t in tags if t.name == named), tags[-1])
    root = tag.parent if tag == path else path
    files = Files.of(path, ("*", "*/*", *(f"{'*/' * depth}{_PARAMETER}" for depth in (2, 3))))
    state = read_state(files, tag)
    if tag != path and named is not None and tag.name != named:
        files.problems.append(f"{named}: missing, but {_LATEST} names it")
    others = [one.name for one in tags if one != tag]
    advice = way_to_weights(root, tag, state)
    return replace(
        files.inspection(f"DeepSpeed {state.stage} checkpoint", state.tensors, advice),
        facts=state.facts,
        step_counts="optimizer updates (global_steps)",
        obstacles=[OTHER_TOOL],
        notes=[f"also in it: {', '.join(others)}"] if others else [],
    )


def latest_tag(path: Path) -> str | None:
    """The tag that the file `latest` names; None without this file."""
    file = path / _LATEST
    if not file.is_file() or file.stat().st_size > _LONGEST_NAME:
        return None
    return file.read_text(encoding="utf-8", errors="replace").strip() or None


def read_state(files: Files, tag: Path) -> ZeroState:
    """Read the files of a tag's first rank. Missing files are added to `files.problems`."""
    names = _tag_names(tag)
    optimizer = {_ranks(_OPTIMIZER, name): name for name in names if _OPTIMIZER.fullmatch(name)}
    sharded = {_ranks(_SHARDED, name): name for name in names if _SHARDED.fullmatch(name)}
    whole = sorted(name for name in names if _WHOLE.fullmatch(name))
    below = "" if tag == files.path else f"{tag.name}/"
    first_model = (whole or sorted(sharded.values()) or [""])[0]
    model = files.read_torch(f"{below}{first_model}") if first_model else None
    first = min(optimizer, default=None)
    state = files.read_torch(f"{below}{optimizer[first]}") if first is not None else None
    model_values = table(model.value) if model else {}
    inner = table(table(state.value).get("optimizer_state_dict")) if state else {}
    stage = number(inner.get("zero_stage"))
    is_third = bool(sharded) and not whole or stage == 3
    ranks = _world(model_values, inner, {one[0] for one in (*optimizer, *sharded)})
    missing = _missing(optimizer, sharded, whole, ranks, is_third=is_third)
    files.problems.extend(f"{below}{name}: missing" for name in missing)
    base = table(inner.get("base_optimizer_state"))
    tensors = {f"model.{n}": t for n, t in _module(model.tensors if model else {}).items()}
    if state is not None:
        before = "optimizer_state_dict.base_optimizer_state.state."
        tensors |= optimizer_tensors(state.tensors, before)
    step = number(model_values.get("global_steps"))
    prefix = next(iter(optimizer.values()), "")
    facts = {
        "step": _step_in(tag.name) if step is None else step,
        "learning_rate": learning_rate_of(base),
        "world_size": ranks or None,
        "dtype": "bfloat16" if prefix.startswith("bf16") else weights_dtype(tensors),
    }
    kind = f"ZeRO-{stage:g}" if stage else _kind(tag, is_third, bool(optimizer))
    if kind == _UNIVERSAL:
        lost = _lost_parameters(tag)
        files.problems.extend(f"{below}{name}: missing" for name in lost)
        missing += lost
    return ZeroState(kind, ranks, facts, tensors, missing)


def _kind(tag: Path, is_third: bool, has_shards: bool) -> str:
    if is_third or has_shards:
        return "ZeRO-3" if is_third else "ZeRO-1 or 2"
    if any(tag.glob(f"zero/*/{_PARAMETER}")):
        return _UNIVERSAL
    return "pipeline" if _has(tag, _LAYER) else "(no ZeRO)"


def _lost_parameters(tag: Path) -> list[str]:
    """The missing weight files of a universal checkpoint. Each parameter's folder needs one."""
    folders = sorted(one for one in (tag / "zero").iterdir() if one.is_dir())
    wanted = (folder / _PARAMETER for folder in folders)
    return [str(file.relative_to(tag)) for file in wanted if not file.is_file()]


def _has(tag: Path, pattern: re.Pattern[str]) -> bool:
    return any(pattern.fullmatch(file.name) for file in tag.iterdir())


def _tag_names(path: Path) -> list[str]:
    """The names of the ranks' files in the folder of a tag."""
    if not path.is_dir():
        return []
    kinds = (_OPTIMIZER, _SHARDED, _WHOLE)
    return sorted(f.name for f in path.iterdir() if any(kind.fullmatch(f.name) for kind in kinds))


def _ranks(pattern: re.Pattern[str], name: str) -> tuple[int, int]:
    """The data-parallel and the model-parallel rank in a file's name."""
    match = pattern.fullmatch(name)
    return (int(match[2]), int(match[3])) if match else (0, 0)


def _world(model: dict[Any, Any], optimizer: dict[Any, Any], found: set[int]) -> int:
    """The number of data-parallel ranks, as stored or else from the numbers in file names."""
    count = optimizer.get("partition_count")
    count = max(map(int, count)) if isinstance(count, list) and count else count
    stored = [number(model.get("dp_world_size")), number(count)]
    known = [int(one) for one in stored if one is not None]
    return max([*known[:1], *(rank + 1 for rank in found)], default=0)


def _missing(
    optimizer: dict[tuple[int, int], str],
    sharded: dict[tuple[int, int], str],
    whole: list[str],
    ranks: int,
    *,
    is_third: bool,
) -> list[str]:
    """The files that a folder lacks for this number of ranks."""
    groups = {mp for _, mp in (*optimizer, *sharded)} or {0}
    start = next((n.partition("zero_pp")[0] for n in optimizer.values()), "")
    lost = []
    for mp in sorted(groups):
        for rank in range(min(ranks, 1 << 16)):
            name = f"zero_pp_rank_{rank}_mp_rank_{mp:02d}"
            if optimizer and (rank, mp) not in optimizer:
                lost.append(f"{start}{name}_optim_states.pt")
            if is_third and (rank, mp) not in sharded:
                lost.append(f"{name}_model_states.pt")
        if not is_third and f"mp_rank_{mp:02d}_model_states.pt" not in whole:
            lost.append(f"mp_rank_{mp:02d}_model_states.pt")
    if is_third and not optimizer:
        lost.append("zero_pp_rank_0_mp_rank_00_optim_states.pt")
    return lost


def _module(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The weights of the model, under their names without "module.". ZeRO-3 has only empty tensors
    there.
    """
    before = "module."
    found = {n.removeprefix(before): t for n, t in tensors.items() if n.startswith(before)}
    return {name: tensor for name, tensor in found.items() if tensor.num_elements}


def _step_in(name: str) -> int | None:
    match = _STEP.search(name)
    return int(match[1]) if match else None


def way_to_weights(root: Path, tag: Path, state: ZeroState) -> str:
    """The advice: how to make weights from a tag, or what can continue from it."""
    if state.stage.startswith("ZeRO") and not _has(tag, _LAYER) and not _has(tag, _EXPERT):
        return f"`{_zero_to_fp32(root, tag)}` makes weights of it; this needs DeepSpeed"
    whole = sorted(name for name in _tag_names(tag) if _WHOLE.fullmatch(name))
    has_weights = any(name.startswith("model.") for name in state.tensors)
    if state.stage == "(no ZeRO)" and has_weights and len(whole) == 1 and not _has(tag, _EXPERT):
        made = root / "pytorch_model.bin"
        return (
            f"`python -c {in_shell(_TAKE_MODULE)} {in_shell(tag / whole[0])} {in_shell(made)}` "
            "makes weights of it; put them next to config.json and the tokenizer of the model"
        )
    call = f"engine.load_checkpoint({str(root)!r}, tag={tag.name!r}) in the script that made it"
    if state.stage == _UNIVERSAL:
        return (
            f'{call} continues from it, with "load_universal": true under "checkpoint" in its '
            f"configuration; this needs DeepSpeed. zero/NAME/{_PARAMETER} is the weight NAME"
        )
    return f"{call} continues from it, and can save the model in one piece; this needs DeepSpeed"


def _zero_to_fp32(root: Path, tag: Path) -> str:
    """The command by which DeepSpeed's own script makes weights of a tag."""
    own = root / _SCRIPT
    script = in_shell(own) if own.is_file() else "-m deepspeed.utils.zero_to_fp32"
    choice = "" if latest_tag(root) == tag.name else f" -t {in_shell(tag.name)}"
    return f"python {script} {in_shell(root)} {in_shell(f'{root}-fp32')}{choice}"
