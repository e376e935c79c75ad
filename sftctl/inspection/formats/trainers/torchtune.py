"""torchtune's `epoch_N`: weights in the layout of the model, and `recipe_state.pt`."""

import re
from dataclasses import replace
from pathlib import Path

from sftctl.inspection.formats.distributed import inspect_distributed
from sftctl.inspection.formats.files import OTHER_TOOL, Files
from sftctl.inspection.formats.model_files import (
    as_weights,
    lost_shards,
    model_facts,
    read_weights,
)
from sftctl.inspection.formats.torch_dict import learning_rate_of, optimizer_tensors
from sftctl.inspection.formats.trainers.sharded import METADATA_NAME, shards_in
from sftctl.inspection.formats.weights import judge_weights, show_tensors
from sftctl.inspection.inspection import Inspection, weights_dtype
from sftctl.inspection.pickles.values import number, table

_STATES = ("recipe_state/recipe_state.pt", "recipe_state.pt")
_CONFIG = "torchtune_config.yaml"
_ANY_NAME = re.compile(r"(hf|meta|torchtune)_model_(\d+_)?\d+\.pt|ft-model-\d+-of-\d+\.\w+")
_FOLDER = re.compile(r"(epoch|step)_(\d+)")


def is_torchtune(path: Path) -> bool:
    """Whether this is a checkpoint of torchtune."""
    if not path.is_dir():
        return False
    if any((path / name).is_file() for name in _STATES):
        return True
    here = path.absolute()
    if _FOLDER.fullmatch(here.name) and _has_recipe(here.parent):
        return True
    return any(_ANY_NAME.fullmatch(file.name) for file in path.iterdir())


def _has_recipe(output: Path) -> bool:
    """Whether this is the output folder of a torchtune recipe."""
    return (output / _CONFIG).is_file() or (output / _STATES[0]).is_file()


def is_torchtune_output(path: Path) -> bool:
    """Whether this is a folder with checkpoints such as `epoch_N`."""
    return bool(_checkpoints(path))


def _checkpoints(path: Path) -> list[Path]:
    entries = path.iterdir() if path.is_dir() else ()
    found = {(m[1], int(m[2])): one for one in entries if (m := _FOLDER.fullmatch(one.name))}
    inside = [found[key] for key in sorted(found) if found[key].is_dir()]
    return [one for one in inside if is_torchtune(one)]


def inspect_torchtune_output(path: Path) -> Inspection:
    """The newest checkpoint of an output folder, with all checkpoints in `checkpoints`."""
    folders = _checkpoints(path)
    checkpoints = [inspect_torchtune(one) for one in folders]
    return replace(checkpoints[-1], checkpoints=checkpoints)


def inspect_torchtune(path: Path) -> Inspection:
    """One checkpoint. The state of its recipe may be in the parent folder."""
    files = Files.of(path, ("*", "*/*"))
    config = files.read_json("config.json")
    if (path / METADATA_NAME).is_file() or shards_in(path):
        return replace(inspect_distributed(path), format="torchtune checkpoint (distributed)")
    tensors = read_weights(files)
    for name in sorted(files.sizes) if not tensors else ():
        if _ANY_NAME.fullmatch(name) and name.endswith(".pt"):
            tensors |= as_weights(files.read_torch(name).tensors)
    is_adapter = "adapter_config.json" in files.sizes
    if not tensors:
        files.problems.append("the weights: missing")
    files.problems.extend(lost_shards(files))
    state_file = next((name for name in _STATES if name in files.sizes), None)
    above = path.parent / _STATES[0]
    if state_file is not None:
        state = files.read_torch(state_file)
    else:
        outer = Files.of(above) if above.is_file() else None
        state = outer.read_torch(above.name) if outer else files.read_torch(_STATES[0])
        files.problems.extend(outer.problems if outer else [])
    value = table(state.value)
    tensors |= optimizer_tensors(state.tensors, "optimizer.state.")
    folder = _FOLDER.fullmatch(path.absolute().name)
    step, epoch = number(value.get("steps_run")), number(value.get("epochs_run"))
    if folder and folder[1] == "epoch" and epoch is None:
        epoch = int(folder[2]) + 1
    if folder and folder[1] == "step" and step is None:
        step = int(folder[2])
    facts = model_facts(config) | {
        "step": step,
        "epoch": epoch,
        "learning_rate": learning_rate_of(value.get("optimizer")),
        "dtype": weights_dtype(tensors),
    }
    problems, notes, train = (
        judge_weights(files, config, tensors) if not is_adapter else ([], [], None)
    )
    files.problems.extend(problems)
    notes = [*notes, "torchtune continues from it with resume_from_checkpoint=True"]
    if not value:
        notes = [*notes, "no recipe_state.pt, only weights"]
    look = show_tensors(path)
    kind = "torchtune adapter checkpoint" if is_adapter else "torchtune checkpoint"
    return replace(
        files.inspection(kind, tensors, train or look),
        facts=facts,
        step_counts="optimizer updates (steps_run)" if step is not None else None,
        epoch_counts="epochs done (epochs_run)" if epoch is not None else None,
        obstacles=[OTHER_TOOL],
        notes=notes,
    )
