"""One torch.save file: MiniMind's `*_resume.pth` or `*.pth`, Lightning's `.ckpt`, or any other."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from sftctl.checkpoint.tensor_index import StoredTensor
from sftctl.inspection.formats.files import (
    OTHER_TOOL,
    TORCH_SUFFIXES,
    Files,
    first_bytes,
)
from sftctl.inspection.formats.model_files import NO_STATE
from sftctl.inspection.formats.weights import show_tensors
from sftctl.inspection.inspection import NO_TENSORS, Inspection, weights_dtype
from sftctl.inspection.pickles.archive import is_archive_of_others
from sftctl.inspection.pickles.torch_file import TorchFile
from sftctl.inspection.pickles.torch_tensors import storages_in
from sftctl.inspection.pickles.values import Budget, is_tensor_like, key_text, number, plain, table

_MINIMIND = {"model", "optimizer", "epoch", "step", "world_size"}
_MINIMIND_ADVICE = "MiniMind's trainer continues from it: --from_resume 1"
_MODEL_KEYS = ("model", "model_state_dict", "state_dict", "module")
_OPTIMIZER_KEYS = ("optimizer", "optimizer_state_dict", "optim")
STEP_KEYS = ("step", "global_step", "iter_num", "iteration", "steps")
_EPOCH_KEYS = ("epoch", "epochs")
_LIGHTNING = "pytorch-lightning_version"
_UNKNOWN = "torch file"
_WRAPPERS = ("module.", "_orig_mod.")  # prefixes of DDP and torch.compile


def is_torch_file(path: Path) -> bool:
    """Whether torch.save wrote this file, by its name or first bytes (a zip archive, a pickle)."""
    if not path.is_file():
        return False
    first = first_bytes(path)
    is_torchs = first.startswith(b"\x80") or (
        first.startswith(b"PK\x03\x04") and not is_archive_of_others(path)
    )
    return path.suffix in TORCH_SUFFIXES or is_torchs


def inspect_torch_file(path: Path) -> Inspection:
    """A file that holds an optimizer, weights, or a dict with both and more."""
    files = Files.of(path)
    found = files.read_torch(path.name)
    value = table(found.value)
    if not (
        files.problems or found.tensors or any(storages_in(found.value)) or _needs_no_tensor(value)
    ):
        files.problems.append(f"{path.name}: {NO_TENSORS}")
    model = next((key for key in _MODEL_KEYS if isinstance(value.get(key), dict)), None)
    if "param_groups" in value:
        return replace(
            files.inspection("torch optimizer file", optimizer_tensors(found.tensors, "state.")),
            facts={"learning_rate": learning_rate_of(value)},
            obstacles=["an optimizer alone: no weights"],
        )
    if _LIGHTNING in value:
        return _inspect_lightning(files, found, value)
    if model is not None:
        return _inspect_training_state(files, found, value, model)
    tensors = _weights(found.tensors, "")
    return replace(
        files.inspection("torch weights file" if tensors else _tool(value), tensors),
        facts={"dtype": weights_dtype(tensors)},
        obstacles=[NO_STATE],
    )


def _needs_no_tensor(value: dict[Any, Any]) -> bool:
    """Whether the file may lack tensors.

    True for an optimizer before step 1, and for one file of a checkpoint of several files.
    """
    return "param_groups" in value or _tool(value) != _UNKNOWN


def _inspect_training_state(
    files: Files, found: TorchFile, value: dict[Any, Any], model: str
) -> Inspection:
    optimizer = _first_key(value, _OPTIMIZER_KEYS)
    tensors = _weights(found.tensors, f"{model}.")
    if optimizer is not None:
        tensors |= optimizer_tensors(found.tensors, f"{optimizer}.state.")
    step_key, epoch_key = _first_key(value, STEP_KEYS), _first_key(value, _EPOCH_KEYS)
    run_id = value.get("wandb_id", value.get("wandb_run_id"))
    budget = Budget()
    others = {
        key_text(key): plain(item, budget)
        for key, item in value.items()
        if key not in (*_MODEL_KEYS, *_OPTIMIZER_KEYS) and not is_tensor_like(item)
    }
    facts = {
        "step": number(value.get(step_key)),
        "epoch": number(value.get(epoch_key)),
        "learning_rate": learning_rate_of(value.get(optimizer)),
        "world_size": number(value.get("world_size")),
        "wandb_run_id": run_id if isinstance(run_id, str) else None,
        "scaler": plain(value.get("scaler")) or None,
        "config": {"stored": others},
        "dtype": weights_dtype(tensors),
    }
    if value.keys() >= _MINIMIND:
        base = files.inspection("MiniMind resume file", tensors, _MINIMIND_ADVICE)
        facts["step_in_epoch"] = facts["step"]
        counts = "micro-batches of one rank in this epoch", "from 0"
    else:
        base = files.inspection(_tool(value), tensors)
        step_counts = f"as stored under {step_key!r}: what it counts depends on the tool"
        counts = step_counts, f"as stored under {epoch_key!r}"
    has_rng = any("rng" in key_text(key).lower() for key in value)
    return replace(
        base,
        facts=facts,
        step_counts=counts[0],
        epoch_counts=counts[1],
        obstacles=[OTHER_TOOL],
        notes=[] if has_rng else ["no RNG state: a resumed run will differ"],
    )


def _tool(value: dict[Any, Any]) -> str:
    """The name of the format. One file of a known tool is recognised by the keys of its dict."""
    inner = table(value.get("optimizer_state_dict"))
    if "zero_stage" in inner or "ds_config" in value or "dp_world_size" in value:
        return "DeepSpeed file of one rank (inspect its folder)"
    if "checkpoint_version" in value and "args" in value:
        return "Megatron file of one rank (inspect its folder)"
    if "epochs_run" in value:
        return "torchtune recipe state (inspect its folder)"
    return _UNKNOWN


def _inspect_lightning(files: Files, found: TorchFile, value: dict[Any, Any]) -> Inspection:
    """A checkpoint of Lightning: the weights, and the moments of each optimizer."""
    before = "state_dict."
    names = [name.removeprefix(before) for name in found.tensors if name.startswith(before)]
    wrapper = "model." if names and all(name.startswith("model.") for name in names) else ""
    tensors = _weights(found.tensors, f"{before}{wrapper}")
    states = value.get("optimizer_states")
    for index in range(len(states) if isinstance(states, (list, tuple)) else 0):
        tensors |= optimizer_tensors(found.tensors, f"optimizer_states.{index}.state.")
    facts, counts = lightning_facts(value)
    version = value.get(_LIGHTNING)
    notes = [] if states else ["no optimizer in it (save_weights_only)"]
    return replace(
        files.inspection(
            "Lightning checkpoint file",
            tensors,
            show_tensors(files.path),
        ),
        facts=facts
        | {
            "dtype": weights_dtype(tensors),
            "versions": {"lightning": version} if isinstance(version, str) else None,
        },
        step_counts=counts,
        epoch_counts="from 0",
        obstacles=[OTHER_TOOL],
        notes=[*notes, "Lightning continues from it with trainer.fit(module, ckpt_path=…)"],
    )


def lightning_facts(value: dict[Any, Any]) -> tuple[dict[str, Any], str]:
    """The counters of a Lightning checkpoint, and what its step counts."""
    states = value.get("optimizer_states")
    first = states[0] if isinstance(states, (list, tuple)) and states else None
    hyper = plain(value.get("hyper_parameters"))
    facts = {
        "step": number(value.get("global_step")),
        "epoch": number(value.get("epoch")),
        "learning_rate": learning_rate_of(first),
        "config": {"hyper_parameters": hyper} if hyper else None,
    }
    return facts, "optimizer updates (global_step)"


def optimizer_tensors(tensors: dict[str, StoredTensor], before: str) -> dict[str, StoredTensor]:
    """The tensors whose name starts with `before`, renamed to "optimizer.<parameter>.<moment>"."""
    return {
        f"optimizer.{name.removeprefix(before)}": tensor
        for name, tensor in tensors.items()
        if name.startswith(before)
    }


def learning_rate_of(state: Any) -> float | None:
    """The learning rate in the state of an optimizer: that of its first parameter group."""
    groups = table(state).get("param_groups")
    first = groups[0] if isinstance(groups, list) and groups else None
    rate = number(table(first).get("lr"))
    return None if rate is None else float(rate)


def _weights(tensors: dict[str, StoredTensor], before: str) -> dict[str, StoredTensor]:
    """The tensors whose name starts with `before`, renamed to "model.<name>".

    Prefixes of wrappers are removed.
    """
    found = {}
    for name, tensor in tensors.items():
        if name.startswith(before):
            name = name.removeprefix(before)
            for wrapper in _WRAPPERS:
                name = name.removeprefix(wrapper)
            found[f"model.{name}"] = tensor
    return found


def _first_key(value: dict[Any, Any], keys: tuple[str, ...]) -> str | None:
    return next((key for key in keys if key in value), None)
