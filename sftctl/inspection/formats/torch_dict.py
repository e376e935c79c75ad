"""One file of torch.save: MiniMind's `*_resume.pth` and `*.pth`, or a dictionary of anybody's."""

from pathlib import Path
from typing import Any

from sftctl.checkpoint.tensor_index import StoredTensor
from sftctl.inspection.formats.files import read_torch, report_of
from sftctl.inspection.formats.optimizer import take_optimizer
from sftctl.inspection.pickles.torch_file import TorchFile
from sftctl.inspection.pickles.values import is_tensor_like, number, plain, table
from sftctl.inspection.report import Report

_MINIMIND = {"model", "optimizer", "epoch", "step", "world_size"}
_MODEL_KEYS = ("model", "model_state_dict", "state_dict", "module")
_OPTIMIZER_KEYS = ("optimizer", "optimizer_state_dict", "optim")
_STEP_KEYS = ("step", "global_step", "iter_num", "iteration", "steps")
_EPOCH_KEYS = ("epoch", "epochs")
_WRAPPERS = ("module.", "_orig_mod.")  # of DDP and torch.compile


def inspect_torch_file(path: Path) -> Report:
    """What a .pth, .pt or .bin file says."""
    report = report_of(path, "torch file")
    found = read_torch(report, path.name)
    value = table(found.value)
    model = next((k for k in _MODEL_KEYS if isinstance(value.get(k), dict)), None)
    if "param_groups" in value:
        report.format = "torch optimizer file"
        report.facts["learning_rate"] = take_optimizer(report, found, "").learning_rate
        report.obstacles.append("an optimizer alone: no weights")
    elif model is None:
        report.format = "torch weights file" if found.tensors else report.format
        report.tensors = _weights(found.tensors, "")
        report.obstacles.append("weights alone: no optimizer, no step")
    else:
        report.tensors = _weights(found.tensors, f"{model}.")
        _tell_counters(report, found, value)
    report.facts["dtype"] = report.weights_dtype
    return report


def _tell_counters(report: Report, found: TorchFile, value: dict[Any, Any]) -> None:
    is_minimind = value.keys() >= _MINIMIND
    if is_minimind:
        report.format = "MiniMind resume file"
    optimizer = next((key for key in _OPTIMIZER_KEYS if key in value), None)
    if optimizer is not None:
        report.facts["learning_rate"] = take_optimizer(report, found, optimizer).learning_rate
    step, epoch = (_first(value, keys) for keys in (_STEP_KEYS, _EPOCH_KEYS))
    report.facts |= {"step": number(value.get(step)), "epoch": number(value.get(epoch))}
    report.step_counts = f"as stored under {step!r}: the tool that wrote it knows what it counts"
    report.epoch_counts = f"as stored under {epoch!r}"
    if is_minimind:
        report.step_counts = "micro-batches of one rank in this epoch"
        report.epoch_counts = "from 0"
        report.facts["step_in_epoch"] = report.facts["step"]
    report.facts["world_size"] = number(value.get("world_size"))
    run_id = value.get("wandb_id", value.get("wandb_run_id"))
    report.facts["wandb_run_id"] = run_id if isinstance(run_id, str) else None
    report.facts["scaler"] = plain(value.get("scaler")) or None
    others = {
        str(key): plain(item)
        for key, item in value.items()
        if key not in (*_MODEL_KEYS, *_OPTIMIZER_KEYS) and not is_tensor_like(item)
    }
    report.facts["config"] = {"stored": others}
    if not any("rng" in str(key).lower() for key in value):
        report.notes.append("no RNG state: a resumed run is another run")
    report.obstacles.append("sftctl resumes its own runs only")
    if is_minimind:
        report.advice = "MiniMind's trainer goes on with it: --from_resume 1"


def _weights(tensors: dict[str, StoredTensor], before: str) -> dict[str, StoredTensor]:
    found = {}
    for name, tensor in tensors.items():
        if name.startswith(before):
            name = name.removeprefix(before)
            for wrapper in _WRAPPERS:
                name = name.removeprefix(wrapper)
            found[f"model.{name}"] = tensor
    return found


def _first(value: dict[Any, Any], keys: tuple[str, ...]) -> str | None:
    return next((key for key in keys if key in value), None)
