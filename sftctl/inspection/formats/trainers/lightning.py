"""A `.ckpt` folder of Lightning, saved by FSDP or DeepSpeed. `torch_dict` reads `.ckpt` files."""

from dataclasses import replace
from pathlib import Path

from sftctl.inspection.formats.distributed import inspect_distributed
from sftctl.inspection.formats.files import Files
from sftctl.inspection.formats.torch_dict import lightning_facts
from sftctl.inspection.formats.trainers.deepspeed import inspect_deepspeed, is_deepspeed
from sftctl.inspection.formats.trainers.sharded import METADATA_NAME, shards_in
from sftctl.inspection.inspection import Inspection
from sftctl.inspection.pickles.values import table
from sftctl.words import in_shell

_META = "meta.pt"
_INNER = "checkpoint"


def is_lightning_folder(path: Path) -> bool:
    """Whether this is a checkpoint folder of Lightning, saved with FSDP or DeepSpeed."""
    if not path.is_dir():
        return False
    sharded = (path / METADATA_NAME).is_file() or bool(shards_in(path))
    if sharded and ((path / _META).is_file() or path.suffix == ".ckpt"):
        return True
    return path.suffix == ".ckpt" and is_deepspeed(path / _INNER)


def inspect_lightning_folder(path: Path) -> Inspection:
    """A checkpoint folder: the tensors of its shards, and the counters in `meta.pt`."""
    if is_deepspeed(path / _INNER):
        inner = inspect_deepspeed(path)
        return replace(inner, format=f"Lightning checkpoint folder, {inner.format}")
    found, files = inspect_distributed(path), Files.of(path)
    meta = table(files.read_torch(_META).value)
    problems = [*found.problems, *files.problems]
    if _META not in files.sizes:
        problems.append(f"{_META}: missing; it has the step, the epoch and the callbacks")
    facts, counts = lightning_facts(meta)
    known = {key: value for key, value in facts.items() if value is not None}
    is_good = not problems
    return replace(
        found,
        format="Lightning checkpoint folder (FSDP)",
        facts={**found.facts, **known},
        problems=problems,
        complete=found.complete and is_good,
        step_counts=counts if known.get("step") is not None else found.step_counts,
        epoch_counts="from 0" if known.get("epoch") is not None else found.epoch_counts,
        advice=(
            f"`python -m lightning.pytorch.utilities.consolidate_checkpoint {in_shell(path)}` "
            "makes one file of it; this needs Lightning"
        )
        if is_good
        else None,
    )
