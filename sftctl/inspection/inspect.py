"""Inspect a checkpoint of any format. FORMATS lists the formats in the order in which they are
tried."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from sftctl.data.manifest import StoreManifest
from sftctl.data.storage.hashes import first_wrong
from sftctl.disk import FILES_OPEN, who_may_not_read
from sftctl.errors import CheckpointError, DataError, NoCheckpoint
from sftctl.inspection.formats.distributed import inspect_distributed, is_distributed
from sftctl.inspection.formats.files import verify_archives
from sftctl.inspection.formats.final import (
    inspect_final_model,
    is_final_model,
    verify_final_model,
)
from sftctl.inspection.formats.gguf import inspect_gguf_file, is_gguf_file
from sftctl.inspection.formats.model_files import (
    inspect_model_directory,
    inspect_safetensors_file,
    is_model_directory,
    is_safetensors_file,
)
from sftctl.inspection.formats.others import files_to_inspect
from sftctl.inspection.formats.sftctl import (
    inspect_checkpoint,
    inspect_run,
    is_checkpoint,
    is_run,
    verify_checkpoint,
)
from sftctl.inspection.formats.torch_dict import inspect_torch_file, is_torch_file
from sftctl.inspection.formats.trainers.accelerate import (
    inspect_accelerate,
    inspect_accelerate_output,
    is_accelerate,
    is_accelerate_output,
)
from sftctl.inspection.formats.trainers.deepspeed import inspect_deepspeed, is_deepspeed
from sftctl.inspection.formats.trainers.lightning import (
    inspect_lightning_folder,
    is_lightning_folder,
)
from sftctl.inspection.formats.trainers.megatron import (
    inspect_megatron,
    inspect_megatron_output,
    is_megatron,
    is_megatron_output,
)
from sftctl.inspection.formats.trainers.nemo import (
    inspect_nemo_file,
    inspect_nemo_folder,
    is_nemo_file,
    is_nemo_folder,
)
from sftctl.inspection.formats.trainers.orbax import (
    inspect_orbax,
    inspect_orbax_output,
    is_orbax,
    is_orbax_output,
)
from sftctl.inspection.formats.trainers.per_rank import inspect_per_rank, is_per_rank
from sftctl.inspection.formats.trainers.torchtune import (
    inspect_torchtune,
    inspect_torchtune_output,
    is_torchtune,
    is_torchtune_output,
)
from sftctl.inspection.formats.trainers.verl import (
    inspect_verl,
    inspect_verl_output,
    is_verl,
    is_verl_output,
)
from sftctl.inspection.formats.transformers_trainer import (
    inspect_trainer_checkpoint,
    inspect_trainer_output,
    is_trainer_checkpoint,
    is_trainer_output,
)
from sftctl.inspection.inspection import Inspection
from sftctl.inspection.other_kinds import is_of_a_model, kind_of_other
from sftctl.runs.directory import RunDir
from sftctl.runs.final import problems_of_final
from sftctl.runs.newest import is_model_of_run, run_around, runs_nearby
from sftctl.words import counted, in_shell


class Format(NamedTuple):
    """A format that sftctl can inspect. `inspect` does not raise damage as an error, but reports
    it.
    """

    name: str  # as it appears in a hint
    recognises: Callable[[Path], bool]
    inspect: Callable[[Path], Inspection]
    verify: Callable[[Inspection], Inspection] = verify_archives  # compares every checksum


FORMATS = (  # the first one that recognises a path inspects it
    Format("a run of sftctl", is_run, inspect_run, verify_checkpoint),
    Format("its final model", is_final_model, inspect_final_model, verify_final_model),
    Format("one of its checkpoints", is_checkpoint, inspect_checkpoint, verify_checkpoint),
    Format(
        "checkpoint-N of transformers or TRL", is_trainer_checkpoint, inspect_trainer_checkpoint
    ),
    Format("a folder of Lightning", is_lightning_folder, inspect_lightning_folder),
    Format("a folder of NeMo", is_nemo_folder, inspect_nemo_folder),
    Format("an iteration of Megatron", is_megatron, inspect_megatron),
    Format("a folder of iterations", is_megatron_output, inspect_megatron_output),
    Format("a folder of DeepSpeed", is_deepspeed, inspect_deepspeed),
    Format("an output folder of torchtune", is_torchtune_output, inspect_torchtune_output),
    Format("a checkpoint of torchtune", is_torchtune, inspect_torchtune),
    Format("a folder of torch.distributed.checkpoint", is_distributed, inspect_distributed),
    Format("a folder of checkpoint-N", is_trainer_output, inspect_trainer_output),
    Format("a folder of Orbax's steps", is_orbax_output, inspect_orbax_output),
    Format("a checkpoint of Orbax", is_orbax, inspect_orbax),
    Format("a folder of accelerate", is_accelerate, inspect_accelerate),
    Format("a folder of checkpoint_N", is_accelerate_output, inspect_accelerate_output),
    Format("a step of verl", is_verl, inspect_verl),
    Format("a folder of global_step_N", is_verl_output, inspect_verl_output),
    Format("one file for each rank", is_per_rank, inspect_per_rank),
    Format("a model directory", is_model_directory, inspect_model_directory),
    Format(".gguf", is_gguf_file, inspect_gguf_file),
    Format(".safetensors", is_safetensors_file, inspect_safetensors_file),
    Format(".nemo", is_nemo_file, inspect_nemo_file),
    Format("a file of torch.save, such as MiniMind's .pth", is_torch_file, inspect_torch_file),
)


def inspect_path(path: Path, verify: bool = False) -> Inspection:
    """Inspect a checkpoint. For a run, inspect the newest checkpoint, and list all in
    `checkpoints`.

    With `verify`, every byte that has a checksum is read too. Damage does not raise an error: it is
    in the result. Raises NoCheckpoint if no format recognises the path. Raises CheckpointError if
    this process may not read it.
    """
    try:
        return _inspect(path, verify)
    except OSError as problem:
        place = path if problem.filename is None else Path(os.fsdecode(problem.filename))
        hint = "it needs a path that you may read; `ulimit -n` shows how many files may be open"
        hint = FILES_OPEN.get(problem.errno or 0, who_may_not_read(place) or hint)
        reason = f"{place}: can't be read: {problem.strerror or problem}"
        raise CheckpointError(reason, hint) from problem


def _inspect(path: Path, verify: bool) -> Inspection:
    if (cut := _CUT.fullmatch(path.name)) and path.is_file():
        raise NoCheckpoint(
            f"{path}: a part of a file that was cut",
            hint=f"join its parts first: `cat {cut[1]}{cut[2]}* > {cut[1]}` in its folder",
        )
    if is_model_of_run(path):
        _refuse_parts_of_runs(path)
    format = _format_of(path)
    if format is None:
        if not path.exists():
            raise NoCheckpoint(f"{path}: no such file or folder", hint=runs_nearby(path))
        _refuse_parts_of_runs(path)
        _refuse_other_kinds(path)
        if inside := files_to_inspect(path):
            raise NoCheckpoint(
                f"{path}: a folder with {counted(len(inside), 'file')} of weights, such as "
                f"{inside[-1].name}",
                hint=f"inspect the file: `sftctl inspect-ckpt {in_shell(inside[-1])}`",
            )
        if inner := _inside(path):
            others = f", and {counted(len(inner) - 1, 'other')}" if len(inner) > 1 else ""
            raise NoCheckpoint(
                f"{path}: a folder around {inner[-1].relative_to(path)}{others}",
                hint=f"name the folder: `sftctl inspect-ckpt {in_shell(inner[-1])}`",
            )
        known = ", ".join(format.name for format in FORMATS)
        raise NoCheckpoint(f"{path}: {_what_it_is(path)}", hint=f"known are {known}")
    inspection = format.inspect(path)
    return _with_store_verified(_verified(inspection, format.verify)) if verify else inspection


def _refuse_parts_of_runs(path: Path) -> None:
    """NoCheckpoint for a file or folder inside a run, and for a run whose run.json is missing."""
    if (run := run_around(path.absolute())) is not None:
        raise NoCheckpoint(
            f"{path}: a part of a run",
            hint=f"inspect the run: `sftctl inspect-ckpt {in_shell(run)}`",
        )
    lost = RunDir(path)
    if lost.config_file.is_file() and lost.checkpoints.is_dir():
        raise NoCheckpoint(f"{lost.run_file}: missing", hint="put it back from a copy")


def _refuse_other_kinds(path: Path) -> None:
    """NoCheckpoint for a file of a model, and for another known kind that is no checkpoint."""
    if is_of_a_model(path) and _format_of(path.parent) is not None:
        folder = path.parent
        raise NoCheckpoint(
            f"{path}: a part of the checkpoint in its folder",
            hint=f"inspect the folder: `sftctl inspect-ckpt {in_shell(folder)}`",
        )
    if kind := kind_of_other(path):
        raise NoCheckpoint(f"{path}: {kind.what}", hint=kind.hint)


_CUT = re.compile(r"(.+\.(?:gguf|safetensors|bin))(\.part|[.-]split-)\w+")
"""Names of parts of a large file, such as `x.gguf.part1of2` or `x.gguf-split-a`.

`cat` joins them.
"""
_MOST_LOOKED_AT = 100  # the number of inner folders that are searched


def _format_of(path: Path) -> Format | None:
    return next((format for format in FORMATS if format.recognises(path)), None)


def _inside(folder: Path) -> list[Path]:
    """The checkpoints inside a folder that is not a checkpoint itself, the newest last.

    If none is directly in the folder, up to three levels are searched. An example is
    `models--a--b/snapshots/…` in a cache of the hub.
    """
    if not folder.is_dir():
        return []
    for places in ("snapshots/*", "*", "*/*", "*/*/*"):
        folders = (one for one in folder.glob(places) if one.is_dir())
        looked_at = islice(folders, _MOST_LOOKED_AT)
        if found := [one for one in looked_at if _format_of(one) is not None]:
            return sorted(found, key=lambda one: (one.stat().st_mtime, one.name))
    return []


def _with_store_verified(inspection: Inspection) -> Inspection:
    """Hash the store that a resume would use, if there is one, and add the result."""
    store = inspection.data_store
    if store is None or not store["fits"]:
        return inspection
    try:
        problem = first_wrong(Path(store["path"]), StoreManifest.read(Path(store["path"])))
    except DataError as error:
        problem = error.message
    if problem is None:
        return replace(inspection, data_store={**store, "verified": True})
    found = {**store, "fits": False, "why": f"damaged: {problem}", "verified": False}
    obstacles = [*inspection.obstacles, f"data: {store['path']}/{problem}"]
    advice = "put the store back, or prepare the data again"
    return replace(inspection, data_store=found, obstacles=obstacles, advice=advice)


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
        final=_verified_final(inspection.final),
    )


def _verified_final(final: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Hash the files of a run's final model, and add the result.

    A model that an older version wrote has no hashes, and is returned as it is.
    """
    if final is None or final["step"] is None:
        return final
    problems = problems_of_final(Path(final["path"]), verify=True)
    return {**final, "verified": not problems, "problems": problems}


def _what_it_is(path: Path) -> str:
    return "not a checkpoint" if path.is_file() else "neither a run nor a checkpoint"
