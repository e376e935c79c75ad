"""Which tool made a path, and what can be said of it."""

from pathlib import Path

from sftctl.errors import NoCheckpoint
from sftctl.inspection.formats.distributed import METADATA_NAME, inspect_distributed
from sftctl.inspection.formats.files import TORCH_SUFFIXES, check_bytes
from sftctl.inspection.formats.model_files import (
    inspect_directory,
    inspect_gguf,
    inspect_safetensors,
)
from sftctl.inspection.formats.sftctl import inspect_checkpoint, inspect_run, is_checkpoint, is_run
from sftctl.inspection.formats.torch_dict import inspect_torch_file
from sftctl.inspection.formats.transformers_trainer import (
    STATE_NAME,
    checkpoints_in,
    inspect_output,
    inspect_trainer,
)
from sftctl.inspection.report import Report

_KNOWN = (
    "a run or checkpoint of sftctl, checkpoint-N of transformers or TRL, a .pth of MiniMind, a "
    "folder of torch.distributed.checkpoint, a model directory, .safetensors, .gguf"
)


def inspect_path(path: Path, verify: bool = False) -> Report:
    """The report of a checkpoint, or of a run's newest one with `checkpoints` of all.

    `verify` reads every byte that has a checksum. Damage is reported, not raised; NoCheckpoint
    where there is nothing that is known.
    """
    if is_run(path):
        return inspect_run(path, verify)
    if is_checkpoint(path):
        return inspect_checkpoint(path, verify)
    report = _inspect_file(path) if path.is_file() else _inspect_folder(path)
    for one in report.checkpoints if report.checkpoints is not None else [report]:
        one.complete = one.complete and all(tensor.is_whole for tensor in one.tensors.values())
        if verify:
            check_bytes(one)
        if one.problems:  # who is told to load it would run what is refused here
            one.complete, one.advice = False, None
    if report.checkpoints:
        report.verified, report.problems = (
            report.checkpoints[-1].verified,
            report.checkpoints[-1].problems,
        )
    return report


def _inspect_folder(path: Path) -> Report:
    if (path / STATE_NAME).is_file():
        return inspect_trainer(path)
    if (path / METADATA_NAME).is_file():
        return inspect_distributed(path)
    if path.is_dir() and checkpoints_in(path):
        return inspect_output(path)
    names = [file.name for file in path.iterdir()] if path.is_dir() else []
    is_weights = any(n.endswith((".safetensors", *TORCH_SUFFIXES)) for n in names)
    if "config.json" in names or "adapter_config.json" in names or is_weights:
        return inspect_directory(path)
    what = "neither a run nor a checkpoint" if path.exists() else "no such file or folder"
    raise NoCheckpoint(f"{path}: {what}", hint=f"known are {_KNOWN}")


def _inspect_file(path: Path) -> Report:
    with path.open("rb") as file:
        head = file.read(9)
    if head.startswith(b"GGUF") or path.suffix == ".gguf":
        return inspect_gguf(path)
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return inspect_safetensors(path)
    if head.startswith((b"PK\x03\x04", b"\x80")) or path.suffix in TORCH_SUFFIXES:
        return inspect_torch_file(path)
    raise NoCheckpoint(f"{path}: not a checkpoint", hint=f"known are {_KNOWN}")
