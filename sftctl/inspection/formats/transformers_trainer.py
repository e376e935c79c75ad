"""`checkpoint-N` of transformers' Trainer, and of trainers based on it, such as TRL's."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from sftctl.inspection.formats.adapters import (
    adapter_kind,
    card_of,
    judge_adapter,
    kind_without_settings,
)
from sftctl.inspection.formats.distributed import distcp_problems
from sftctl.inspection.formats.files import OTHER_TOOL, Files
from sftctl.inspection.formats.model_files import model_facts, read_weights
from sftctl.inspection.formats.torch_dict import learning_rate_of, optimizer_tensors
from sftctl.inspection.formats.trainers.deepspeed import (
    ZeroState,
    latest_tag,
    read_state,
    tags_in,
    way_to_weights,
)
from sftctl.inspection.formats.weights import judge_weights
from sftctl.inspection.inspection import Inspection, Tensors, weights_dtype
from sftctl.inspection.pickles.opcodes import CallResult
from sftctl.inspection.pickles.torch_file import archive_digest
from sftctl.inspection.pickles.values import key_text, number, plain, table

_STATE_NAME = "trainer_state.json"
_STEP_NAME = re.compile(r"checkpoint-([0-9]+)")
_RNG_NAME = re.compile(r"rng_state(?:_([0-9]+))?\.pth")
_MOST_SHOWN = 10  # names of lost files
_MOST_RANKS = 100_000
_WEIGHTS = re.compile(r".*\.safetensors.*|pytorch_model.*|(.+/)?adapter_model.*|[^/]*model[^/]*/.*")
_EXPECTED = ("optimizer.pt", "scheduler.pt", "training_args.bin")


_TOOLS = {  # prefix of the module of the settings' class -> tool
    "trl.": "TRL", "llamafactory.": "LLaMA-Factory", "axolotl.": "axolotl", "Unsloth": "Unsloth",
}  # fmt: skip


def is_trainer_checkpoint(path: Path) -> bool:
    """Whether this is one checkpoint, also if its save was interrupted."""
    if not path.is_dir():
        return False
    if (path / _STATE_NAME).is_file():
        return True
    has_more = any((path / name).is_file() for name in ("optimizer.pt", "scheduler.pt"))
    return _STEP_NAME.fullmatch(path.absolute().name) is not None and has_more


def is_trainer_output(path: Path) -> bool:
    """Whether this is a folder of such checkpoints."""
    return any(is_trainer_checkpoint(one) for one in _checkpoints_in(path))


def inspect_trainer_output(path: Path) -> Inspection:
    """The newest checkpoint of a folder, with all checkpoints in `checkpoints`."""
    checkpoints = [inspect_trainer_checkpoint(checkpoint) for checkpoint in _checkpoints_in(path)]
    newest, whole = checkpoints[-1], [one for one in checkpoints if not one.problems]
    unfinished = sorted(one.name for one in path.glob("tmp-checkpoint-*") if one.is_dir())
    notes = [f"{name}: a save that was not finished" for name in unfinished]
    if whole and newest.problems:
        notes.append(f"the newest complete one is {whole[-1].path.name}")
    return replace(newest, checkpoints=checkpoints, notes=[*newest.notes, *notes])


def inspect_trainer_checkpoint(path: Path) -> Inspection:
    """A checkpoint, from its JSON files, weights and torch files. No code in them is run."""
    files = Files.of(path, ("*", "*/*"))
    if _STATE_NAME not in files.sizes:
        files.problems.append(f"{_STATE_NAME}: missing; it is written last")
    state = files.read_json(_STATE_NAME)
    arguments = files.read_torch("training_args.bin").value
    options = table(plain(arguments))
    config = files.read_json("config.json")
    facts = model_facts(config)
    tensors = read_weights(files)
    train, notes, adapter = _weights(files, config, tensors)
    zero, to_weights = _deepspeed(files)
    tensors |= zero.tensors if zero else {}
    optimizer = files.read_torch("optimizer.pt")
    tensors |= optimizer_tensors(optimizer.tensors, "state.")
    rng = _rng(files)
    files.problems.extend(_lost_files(files, adapter is not None, options))
    scaler = table(plain(files.read_torch("scaler.pt").value))
    rates = table(plain(files.read_torch("scheduler.pt").value)).get("_last_lr")
    next_rate = number(rates[0]) if isinstance(rates, list) and rates else None
    if options:
        facts["config"] = {"training_args": options}
    ranks = _world_size(files, options) or (zero.ranks if zero else None)
    facts |= _counters(state, options, ranks) | _logged(state)
    facts |= {"scaler": scaler or None, "dtype": _dtype(options) or weights_dtype(tensors)}
    format = "transformers Trainer checkpoint"
    if isinstance(arguments, CallResult):
        module, _, settings = arguments.by.rpartition(".")
        tools = (tool for begin, tool in _TOOLS.items() if module.startswith(begin))
        format = next((f"{tool} checkpoint ({settings})" for tool in tools), format)
    if not state and (match := _STEP_NAME.fullmatch(path.absolute().name)):
        facts["step"] = int(match[1])
    resume = f"trainer.train(resume_from_checkpoint={str(path)!r}) continues from it"
    advice = [part for part in (resume, train, to_weights) if part]
    kinds = [
        format,
        *([adapter] if adapter else []),
        *([f"DeepSpeed {zero.stage}"] if zero else []),
    ]
    return replace(
        files.inspection(", ".join(kinds), tensors, "; ".join(advice)),
        facts=facts,
        step_counts="optimizer updates (global_step)",
        epoch_counts="epochs done, with a fraction",
        next_learning_rate=learning_rate_of(optimizer.value) if next_rate is None else next_rate,
        loss=_last_logged(state, "loss"),
        rng=rng,
        obstacles=[OTHER_TOOL],
        notes=[*notes, *_notes(files, rng is not None)],
    )


def _weights(
    files: Files, config: dict[str, Any], tensors: Tensors
) -> tuple[str | None, list[str], str | None]:
    """(command that trains from the weights, notes, kind of the adapter if it is one)."""
    adapter = files.read_json("adapter_config.json")
    if adapter:
        problems, note = judge_adapter(files, adapter, tensors)
        files.problems.extend(problems)
        return (
            None,
            [note],
            adapter_kind(adapter, card_of(files)).replace(" directory", ""),
        )
    if (kind := kind_without_settings(files, tensors)) is not None:
        return None, [], kind.replace(" directory", "")
    if not tensors:
        return None, [], None
    problems, notes, train = judge_weights(files, config, tensors)
    files.problems.extend(problems)
    return train, notes, None


def _deepspeed(files: Files) -> tuple[ZeroState | None, str | None]:
    """DeepSpeed's state in the folder, and the command that makes weights of it; or None, None."""
    for folder in sorted({name.partition("/")[0] for name in files.sizes if "/" in name}):
        files.problems.extend(distcp_problems(files.path / folder))
    tags = tags_in(files.path)
    if not tags:
        return None, None
    named = latest_tag(files.path)
    tag = next((one for one in tags if one.name == named), tags[-1])
    if named is not None and tag.name != named:
        files.problems.append(f"{named}: missing, but latest names it")
    state = read_state(files, tag)
    return state, way_to_weights(files.path, tag, state)


def _checkpoints_in(path: Path) -> list[Path]:
    """The checkpoints in a folder, the smallest step first."""
    entries = path.iterdir() if path.is_dir() else ()
    found = {
        int(match[1]): entry for entry in entries if (match := _STEP_NAME.fullmatch(entry.name))
    }
    return [found[step] for step in sorted(found) if found[step].is_dir()]


def _counters(
    state: dict[str, Any], options: dict[str, Any], world_size: int | None
) -> dict[str, Any]:
    keys = ("global_step", "max_steps", "num_train_epochs")
    step, total, epochs = (number(state.get(key)) for key in keys)
    facts: dict[str, Any] = {"step": step, "epoch": number(state.get("epoch"))}
    facts |= {"total_steps": total, "world_size": world_size}
    facts |= {"tokens_seen": number(state.get("num_input_tokens_seen")) or None}
    batch = options.get("per_device_train_batch_size", state.get("train_batch_size"))
    accumulation = options.get("gradient_accumulation_steps")
    if isinstance(batch, int) and isinstance(accumulation, int) and world_size is not None:
        facts["global_batch_size"] = batch * accumulation * world_size
    if isinstance(total, int) and isinstance(epochs, int) and epochs and total % epochs == 0:
        per_epoch = facts["steps_per_epoch"] = total // epochs
        if isinstance(step, int) and per_epoch:
            facts["step_in_epoch"] = step % per_epoch
    return facts


def _history(state: dict[str, Any]) -> list[dict[str, Any]]:
    history = state.get("log_history")
    return [line for line in history if isinstance(line, dict)] if isinstance(history, list) else []


def _last_logged(state: dict[str, Any], key: str) -> Any:
    """The last number that was logged under this key for the checkpoint's step; else None."""
    lines = [line for line in _history(state) if line.get("step") == state.get("global_step")]
    values = [number(line.get(key)) for line in lines]
    return next((value for value in reversed(values) if value is not None), None)


def _logged(state: dict[str, Any]) -> dict[str, Any]:
    """The learning rate of the checkpoint's step, and the validation losses so far."""
    facts: dict[str, Any] = {"learning_rate": _last_logged(state, "learning_rate")}
    evaluations = [line for line in _history(state) if number(line.get("eval_loss")) is not None]
    if evaluations:
        losses = [line["eval_loss"] for line in evaluations]
        facts["validation"] = {
            "first": losses[0],
            "best": min(losses),
            "last": losses[-1],
            "step": evaluations[-1].get("step"),
        }
    return facts


def _world_size(files: Files, options: dict[str, Any]) -> int | None:
    """The number of ranks: as stored in the arguments, else the number of RNG files."""
    return _processes(options) or len(_rng_names(files)) + len(_lost_ranks(files, options)) or None


def _processes(options: dict[str, Any]) -> int | None:
    processes = table(options.get("distributed_state")).get("num_processes")
    return processes if isinstance(processes, int) else None


def _lost_files(files: Files, is_adapter: bool, options: dict[str, Any]) -> list[str]:
    """A problem for lost weights, and for each lost RNG state of a rank.

    FSDP and DeepSpeed save the weights in folders.
    """
    lost = [f"rng_state_{rank}.pth" for rank in _lost_ranks(files, options)]
    if not any(map(_WEIGHTS.fullmatch, files.sizes)) and not tags_in(files.path):
        name = "adapter_model" if is_adapter else "model"
        lost.insert(0, f"{name}.safetensors")
    shown = [f"{name}: missing" for name in lost[:_MOST_SHOWN]]
    more = [f"{len(lost) - _MOST_SHOWN} more files are missing"]
    return [*shown, *(more if len(lost) > _MOST_SHOWN else [])]


def _lost_ranks(files: Files, options: dict[str, Any]) -> list[int]:
    """The ranks whose RNG state is lost, if each rank has a file of its own."""
    names = filter(None, map(_RNG_NAME.fullmatch, files.sizes))
    ranks = {int(name[1]) for name in names if name[1]}
    if not ranks:
        return []
    count = min(max(_processes(options) or 0, max(ranks) + 1), _MOST_RANKS)
    return [rank for rank in range(count) if rank not in ranks]


def _dtype(options: dict[str, Any]) -> str | None:
    """The dtype in which the training computed (with autocast)."""
    if options.get("bf16"):
        return "bfloat16"
    return "float16" if options.get("fp16") else "float32" if options else None


def _rng_names(files: Files) -> list[str]:
    return sorted(name for name in files.sizes if _RNG_NAME.fullmatch(name))


def _rng(files: Files) -> dict[str, Any] | None:
    names = _rng_names(files)
    if not names:
        return None
    generators = sorted(map(key_text, table(files.read_torch(names[0]).value)))
    digests = [archive_digest(files.path / name) for name in names]
    return {"ranks": len(names), "generators": generators, "digests": digests}


def _others(files: Files) -> list[str]:
    """Files of an optimizer with the name that accelerate gives them."""
    return [name for name in files.sizes if name.startswith("optimizer") and name.endswith(".bin")]


def _notes(files: Files, has_rng: bool) -> list[str]:
    """A note on missing files that the Trainer needs to continue exactly.

    FSDP saves the optimizer in a folder. This counts too.
    """
    folders = {name.partition("/")[0] for name in files.sizes if "/" in name}
    missing = [name for name in _EXPECTED if name not in files.sizes]
    if any("optim" in name or "global_step" in name for name in (*folders, *_others(files))):
        missing = [name for name in missing if name != "optimizer.pt"]
    if not has_rng:
        missing.append("rng_state.pth")
    return [f"not in it: {', '.join(missing)}"] if missing else []
