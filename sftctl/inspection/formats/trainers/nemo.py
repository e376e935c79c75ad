"""NeMo: a `.nemo` archive, or NeMo 2's folder with `context` and `weights`."""

import re
import tarfile
from dataclasses import replace
from pathlib import Path

from sftctl.inspection.formats.files import OTHER_TOOL, Files
from sftctl.inspection.formats.model_files import NO_STATE
from sftctl.inspection.formats.trainers.megatron import inspect_megatron
from sftctl.inspection.formats.weights import show_tensors
from sftctl.inspection.inspection import Inspection
from sftctl.words import in_shell

_CONFIG, _WEIGHTS = "model_config.yaml", ("model_weights.ckpt", "model_weights")
_MOST_MEMBERS = 100_000
_STEP = re.compile(r"step[=_-]?(\d+)")
_EPOCH = re.compile(r"epoch[=_-]?(\d+)")


def is_nemo_file(path: Path) -> bool:
    """Whether this is a `.nemo` archive, by its name."""
    return path.is_file() and path.suffix == ".nemo"


def inspect_nemo_file(path: Path) -> Inspection:
    """A `.nemo` archive: the names of its members. Nothing is unpacked."""
    files = Files.of(path)
    names = set[str]()
    try:
        with tarfile.open(path) as archive:
            for number, member in enumerate(archive):
                names.add(member.name.removeprefix("./"))
                if number >= _MOST_MEMBERS:
                    files.problems.append(f"{path.name}: more than {_MOST_MEMBERS:,} members")
                    break
    except (tarfile.TarError, EOFError, OSError, ValueError) as problem:
        files.problems.append(f"{path.name}: not a complete .nemo archive: {problem}")
    if not files.problems:
        if _CONFIG not in names:
            files.problems.append(f"{path.name}: {_CONFIG}: missing in the archive")
        weights = [name for name in names if name.partition("/")[0] in _WEIGHTS or _is_rank(name)]
        if not weights:
            files.problems.append(f"{path.name}: {_WEIGHTS[0]}: missing in the archive")
    return replace(
        files.inspection(
            "NeMo model archive",
            {},
            f"`tar -xf {in_shell(path)} --one-top-level={in_shell(path.with_suffix(''))}` "
            "unpacks it, then inspect the weights in it",
        ),
        obstacles=[NO_STATE],
        notes=[f"in it: {', '.join(sorted(names)[:8])}"] if names else [],
    )


def _is_rank(name: str) -> bool:
    return name.startswith(("mp_rank_", "tp_rank_"))


def is_nemo_folder(path: Path) -> bool:
    """Whether this is a checkpoint folder of NeMo 2."""
    return path.is_dir() and (path / "weights").is_dir() and (path / "context").is_dir()


def inspect_nemo_folder(path: Path) -> Inspection:
    """A folder of NeMo 2. Megatron wrote its `weights`; step and epoch may be in its name."""
    found = inspect_megatron(path / "weights")
    files = Files.of(path, ("*", "*/*"))
    problems = [f"weights/{problem}" for problem in found.problems]
    if not any((path / "context" / name).is_file() for name in ("io.json", "model.yaml")):
        problems.append("context/io.json: missing")
    step, epoch = _STEP.search(path.absolute().name), _EPOCH.search(path.absolute().name)
    facts = dict(found.facts)
    facts["step"] = facts.get("step") if facts.get("step") is not None else step and int(step[1])
    facts["epoch"] = int(epoch[1]) if epoch else None
    return replace(
        found,
        path=path,
        format="NeMo checkpoint folder",
        facts=facts,
        files={name: {"num_bytes": size, "sha256": None} for name, size in files.sizes.items()},
        num_bytes=sum(files.sizes.values()),
        problems=problems,
        complete=not problems,
        step_counts="optimizer updates" if facts["step"] is not None else None,
        epoch_counts="from 0, in the folder's name" if epoch else None,
        obstacles=[OTHER_TOOL],
        notes=[],
        advice=None if problems else show_tensors(path / "weights"),
    )
