"""Models without a trainer's state: a Hugging Face directory, a safetensors file, a .gguf file."""

from pathlib import Path
from typing import Any

from sftctl.checkpoint.tensor_index import stored_tensors
from sftctl.errors import CorruptCheckpoint
from sftctl.inspection.formats.files import damaged, read_json, read_weights, report_of
from sftctl.inspection.formats.gguf import read_gguf
from sftctl.inspection.report import Report

_NO_STATE = "weights alone: no optimizer, no step"


def tell_model(report: Report, config: dict[str, Any]) -> None:
    """What config.json says."""
    dtype = config.get("dtype", config.get("torch_dtype"))
    report.facts["dtype"] = dtype if isinstance(dtype, str) else None
    if config:
        report.facts["config"] = {"model": config}
    if "transformers_version" in config:
        report.facts["versions"] = {"transformers": config["transformers_version"]}


def inspect_directory(path: Path) -> Report:
    """A Hugging Face model directory, or an adapter's."""
    report = report_of(path, "Hugging Face model directory")
    adapter = read_json(report, "adapter_config.json")
    tell_model(report, read_json(report, "config.json"))
    if adapter:
        report.format = "PEFT adapter directory"
        report.facts["config"] = {"adapter": adapter}
    read_weights(report)
    if not report.tensors:
        report.notes.append("no weights in it")
    _close(report, f"`sftctl train --model {path}` starts a run from its weights")
    return report


def inspect_safetensors(path: Path) -> Report:
    """One safetensors file."""
    report = report_of(path, "safetensors file")
    try:
        tensors = stored_tensors(path.parent, [path.name])
        report.tensors = {f"model.{name}": tensor for name, tensor in tensors.items()}
    except CorruptCheckpoint as error:
        damaged(report, error)
    _close(report, None)
    return report


def inspect_gguf(path: Path) -> Report:
    """One .gguf file."""
    report = report_of(path, "GGUF file")
    try:
        header = read_gguf(path)
    except CorruptCheckpoint as error:
        damaged(report, error)
    else:
        report.tensors = {f"model.{name}": tensor for name, tensor in header.tensors.items()}
        report.facts |= {"config": {"gguf": header.values}, "versions": {"gguf": header.version}}
    _close(report, f"`sftctl train --model {path}` starts a run from its weights")
    return report


def _close(report: Report, advice: str | None) -> None:
    report.facts["dtype"] = report.facts.get("dtype") or report.weights_dtype
    report.obstacles.append(_NO_STATE)
    report.advice = advice
