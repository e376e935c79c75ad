"""final/ of a run: a model directory with a manifest, which has the step and the files' hashes."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from sftctl.checkpoint.layout import step_of
from sftctl.checkpoint.sealed import is_sealed, read_seal
from sftctl.errors import CheckpointError
from sftctl.inspection.formats.model_files import STEP_COUNTS, inspect_model_directory
from sftctl.inspection.inspection import Inspection
from sftctl.runs.directory import RunDir
from sftctl.runs.final import SOUND_HINT, problems_of_final
from sftctl.words import in_shell

_CONFIGS = ("config.json", "adapter_config.json")


def is_final_model(path: Path) -> bool:
    """Whether this is a model directory with a manifest of sftctl."""
    is_checkpoint = step_of(path.absolute().name) is not None
    return (
        not is_checkpoint and is_sealed(path) and any((path / name).is_file() for name in _CONFIGS)
    )


def inspect_final_model(path: Path) -> Inspection:
    """A run's final model, without hashing its files."""
    found = inspect_model_directory(path)
    problems = [*found.problems, *problems_of_final(path, verify=False)]
    facts = dict(found.facts)
    with suppress(CheckpointError):  # an unreadable manifest is already among the problems
        seal = read_seal(path)
        facts |= {"step": seal.step, "base": seal.base}
    counts = STEP_COUNTS if facts.get("step") is not None else None
    found = replace(found, facts=facts, step_counts=counts)
    return _with_problems(found, problems, complete=found.complete and not problems)


def verify_final_model(inspection: Inspection) -> Inspection:
    """The inspection after hashing every file."""
    known = inspection.problems
    changed = [p for p in problems_of_final(inspection.path, verify=True) if p not in known]
    found = replace(inspection, verified=not (known or changed))
    return _with_problems(found, [*known, *changed], complete=inspection.complete)


def _with_problems(found: Inspection, problems: list[str], *, complete: bool) -> Inspection:
    """Add the problems to an inspection.

    `train` refuses a model with problems. So the advice is then the command that writes the model
    again, if the model is still in its run.
    """
    if not problems:
        return replace(found, problems=[], complete=complete)
    run = RunDir(found.path.absolute().parent)
    is_in_run = run.final == found.path.absolute() and run.run_file.is_file()
    advice = f"`sftctl resume {in_shell(run.path)}` writes it again" if is_in_run else None
    remedies = dict.fromkeys(problems, advice or SOUND_HINT) | dict(found.remedies)
    return replace(found, problems=problems, complete=complete, advice=advice, remedies=remedies)
