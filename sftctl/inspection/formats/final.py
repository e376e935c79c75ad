"""final/ of a run: a model directory with a manifest that has the step and the hashes of the
files."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from sftctl.checkpoint.layout import MANIFEST_HASH_NAME, step_of
from sftctl.checkpoint.sealed import read_seal
from sftctl.errors import CheckpointError
from sftctl.inspection.formats.model_files import STEP_COUNTS, inspect_model_directory
from sftctl.inspection.inspection import Inspection
from sftctl.runs.final import problems_of_final

_CONFIGS = ("config.json", "adapter_config.json")


def is_final_model(path: Path) -> bool:
    """Whether this is a model directory with a manifest of its own."""
    is_checkpoint = step_of(path.absolute().name) is not None
    has_manifest = (path / MANIFEST_HASH_NAME).is_file() and not is_checkpoint
    return has_manifest and any((path / name).is_file() for name in _CONFIGS)


def inspect_final_model(path: Path) -> Inspection:
    """A run's final model, without hashing its files."""
    found = inspect_model_directory(path)
    problems = [*found.problems, *problems_of_final(path, verify=False)]
    facts = dict(found.facts)
    with suppress(CheckpointError):  # it is one of the problems
        seal = read_seal(path)
        facts |= {"step": seal.step, "base": seal.base}
    counts = STEP_COUNTS if facts.get("step") is not None else None
    return replace(
        found,
        facts=facts,
        step_counts=counts,
        problems=problems,
        complete=found.complete and not problems,
    )


def verify_final_model(inspection: Inspection) -> Inspection:
    """The inspection after hashing every file."""
    known = inspection.problems
    changed = [p for p in problems_of_final(inspection.path, verify=True) if p not in known]
    return replace(inspection, problems=[*known, *changed], verified=not (known or changed))
