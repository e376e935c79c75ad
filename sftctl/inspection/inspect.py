"""Inspect a checkpoint of any format. FORMATS says which format recognises which path."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from sftctl.errors import NoCheckpoint
from sftctl.inspection.formats.distributed import inspect_distributed, is_distributed
from sftctl.inspection.formats.files import verify_archives
from sftctl.inspection.formats.gguf import inspect_gguf_file, is_gguf_file
from sftctl.inspection.formats.model_files import (
    inspect_model_directory,
    inspect_safetensors_file,
    is_model_directory,
    is_safetensors_file,
)
from sftctl.inspection.formats.sftctl import (
    inspect_checkpoint,
    inspect_run,
    is_checkpoint,
    is_run,
    verify_checkpoint,
)
from sftctl.inspection.formats.torch_dict import inspect_torch_file, is_torch_file
from sftctl.inspection.formats.transformers_trainer import (
    inspect_trainer_checkpoint,
    inspect_trainer_output,
    is_trainer_checkpoint,
    is_trainer_output,
)
from sftctl.inspection.inspection import Inspection


class Format(NamedTuple):
    """One format. `inspect` reports damage and does not raise it."""

    name: str  # as a hint lists it
    recognises: Callable[[Path], bool]
    inspect: Callable[[Path], Inspection]
    verify: Callable[[Inspection], Inspection] = verify_archives  # also checks every checksum


FORMATS = (  # the first one that recognises a path inspects it
    Format("a run of sftctl", is_run, inspect_run, verify_checkpoint),
    Format("one of its checkpoints", is_checkpoint, inspect_checkpoint, verify_checkpoint),
    Format(
        "checkpoint-N of transformers or TRL", is_trainer_checkpoint, inspect_trainer_checkpoint
    ),
    Format("a folder of torch.distributed.checkpoint", is_distributed, inspect_distributed),
    Format("a folder of checkpoint-N", is_trainer_output, inspect_trainer_output),
    Format("a model directory", is_model_directory, inspect_model_directory),
    Format(".gguf", is_gguf_file, inspect_gguf_file),
    Format(".safetensors", is_safetensors_file, inspect_safetensors_file),
    Format("a file of torch.save, such as MiniMind's .pth", is_torch_file, inspect_torch_file),
)


def inspect_path(path: Path, verify: bool = False) -> Inspection:
    """Inspect a checkpoint, or a run's newest checkpoint with all of them in `checkpoints`.

    `verify` reads every byte that has a checksum. Damage is reported, not raised. Raises
    NoCheckpoint if no format recognises the path.
    """
    format = next((format for format in FORMATS if format.recognises(path)), None)
    if format is None:
        known = ", ".join(format.name for format in FORMATS)
        raise NoCheckpoint(f"{path}: {_what_it_is(path)}", hint=f"known are {known}")
    inspection = format.inspect(path)
    return _verified(inspection, format.verify) if verify else inspection


def _verified(inspection: Inspection, verify: Callable[[Inspection], Inspection]) -> Inspection:
    if inspection.checkpoints is None:
        return verify(inspection)
    checkpoints = [verify(checkpoint) for checkpoint in inspection.checkpoints]
    newest = checkpoints[-1]
    return replace(
        inspection,
        checkpoints=checkpoints,
        complete=newest.complete,
        verified=newest.verified,
        problems=newest.problems,
        advice=newest.advice,
    )


def _what_it_is(path: Path) -> str:
    if path.is_file():
        return "not a checkpoint"
    return "neither a run nor a checkpoint" if path.exists() else "no such file or folder"
