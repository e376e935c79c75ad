"""Whether sftctl can resume one of its checkpoints on this machine now; if not, why.

`sftctl resume` gives the same answer, because both use runs/resumable and runs/differences.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sftctl.checkpoint.damage import is_complete
from sftctl.checkpoint.directory import list_checkpoints
from sftctl.checkpoint.layout import CheckpointManifest, checkpoint_name
from sftctl.config.schema import RunConfig
from sftctl.data.manifest import StoreManifest, cached_store, is_prepared, joined_fingerprint
from sftctl.data.mixture import mixture_of
from sftctl.data.reading.sources import find_sources
from sftctl.data.storage.hashes import require_sizes
from sftctl.data.storage.settings import require_settings
from sftctl.errors import DataError, SftctlError
from sftctl.runs.differences import DataHere, Difference, changed_data_keys, differences_of
from sftctl.runs.directory import RunDir
from sftctl.runs.mixtures import (
    checkpoint_of_source,
    of_source,
    sources_with_paths,
    total_steps,
)
from sftctl.runs.resumable import (
    allow_flags,
    cached_manifest,
    ended_early,
    flags_to_train_longer,
    obstacles_in_differences,
    obstacles_in_run,
    require_named_files,
)
from sftctl.words import counted, in_shell


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether a checkpoint can be resumed, and what to do."""

    advice: str  # the command to type, or how to remove the first obstacle
    obstacles: list[str] = field(default_factory=list)  # why it can't be resumed; empty: it can
    data_store: dict[str, Any] | None = None  # path, fits (None: not checked), why
    notes: list[str] = field(default_factory=list)


def judge(checkpoint: Path, manifest: CheckpointManifest | None, is_damaged: bool) -> Readiness:
    """Decide whether `sftctl resume` can continue from this checkpoint.

    `manifest` is None if it can't be read.
    """
    is_below = len(checkpoint.parts) > 2
    run = RunDir((checkpoint if is_below else checkpoint.absolute()).parent.parent)
    typed = run.path if checkpoint.is_absolute() else checkpoint.parent.parent
    command = f"sftctl resume {in_shell(typed)}"
    if manifest is None or is_damaged:
        return Readiness(_advice_for_damage(run, command))
    try:
        config = RunDir.open(run.path).resolved_config()
    except SftctlError as error:
        is_run = run.run_file.exists() or run.config_file.exists()
        advice = error.hint if is_run else None
        return Readiness(advice or "put it back into RUN/checkpoints of its run", [error.message])
    if not any(path.samefile(checkpoint) for path in list_checkpoints(run.checkpoints)):
        name = checkpoint_name(manifest.step)
        return Readiness(
            f"rename it to {name}", [f"a resume looks only at folders named like {name}"]
        )
    data, store, errors = _judge_data(manifest, config)
    differences = list[Difference]()
    try:
        differences = list(differences_of(manifest, config, data))
    except SftctlError as error:  # the configuration in the manifest can't be read
        errors = [*errors, error]
    errors = [
        *obstacles_in_run(run, checkpoint, manifest, config),
        *errors,
        *obstacles_in_differences(checkpoint, differences),
    ]
    notes = _changes(changed_data_keys(manifest, config), differences, command)
    is_newest = list_checkpoints(run.checkpoints)[-1].samefile(checkpoint)
    command = command if is_newest else f"{command} --step {manifest.step}"
    if errors:
        advice = _advice_against(errors, differences, command)
    elif not is_newest:
        advice = f"{command}   (moves later ones away)"
    elif manifest.step >= (total := total_steps(config.train, manifest)):
        asked = f"config.toml now asks for {counted(total, 'step')}"
        is_changed = total != manifest.total_steps
        notes = [*notes, f"finished: {asked if is_changed else 'every step is trained'}"]
        flags = flags_to_train_longer(config.train, manifest)
        advice = f"{command} {flags}   (to train longer)"
    elif (reason := ended_early(manifest, config)) is not None:
        notes = [*notes, f"finished: {reason}"]
        advice = f"raise train.patience in config.toml, then {command}   (to train longer)"
    else:
        advice = command
    return Readiness(advice, [_reason(error, checkpoint) for error in errors], store, notes)


def _advice_for_damage(run: RunDir, command: str) -> str:
    if any(is_complete(path) for path in list_checkpoints(run.checkpoints)):
        return f"{command}   (falls back to the newest complete checkpoint)"
    return "put one back from a copy, or start a new run"


def _advice_against(
    errors: Sequence[SftctlError], differences: Sequence[Difference], command: str
) -> str:
    """How to remove the first obstacle.

    If the only obstacle are changes that can be allowed, this is the command that allows them.
    """
    flags = allow_flags(differences)
    if flags and len(errors) == 1 and all(d.verdict != "impossible" for d in differences):
        return f"{command} {flags}   (only if you want that)"
    return errors[0].hint or f"`{command} --dry-run` says more"


def _reason(error: SftctlError, checkpoint: Path) -> str:
    return error.message.removeprefix(f"{checkpoint}: ")


def _judge_data(
    manifest: CheckpointManifest, config: RunConfig
) -> tuple[DataHere | None, dict[str, Any], list[SftctlError]]:
    """(data, facts, errors): what a resume would do about its data.

    `data` is None if the resume would prepare the data again. The facts about the store are for the
    report. The errors are those that the resume would raise.
    """
    path, fingerprint = config.data.path, manifest.data_fingerprint
    try:
        data = _mixed_here(manifest, config)
    except SftctlError as error:
        reason = error.message.removeprefix("data: ").removeprefix(f"data.path: {path}: ")
        return None, {"path": path, "fits": None, "why": reason}, [error]
    if data is None:
        gone = "not in the cache: resume prepares it again"
        return None, {"path": str(cached_store(fingerprint)), "fits": None, "why": gone}, []
    fits = data.fingerprint == fingerprint
    why = None if fits else "other data: the fingerprint differs"
    return data, {"path": str(data.path), "fits": fits, "why": why}, []


def _mixed_here(manifest: CheckpointManifest, config: RunConfig) -> DataHere | None:
    """The data of all sources for a resume. None if a source would be prepared again.

    Raises a SftctlError if the resume would be refused.
    """
    sources = sources_with_paths(config.data)
    parts = [
        _data_here(checkpoint_of_source(manifest, s.name) or manifest, of_source(config, s))
        for s in sources
    ] or [_data_here(manifest, config)]
    found = [part for part in parts if part is not None]
    if len(found) < len(parts):
        return None
    manifests = [StoreManifest.read(part.path) for part in found]
    mixture = mixture_of(config.data, manifests)
    return replace(
        found[0],
        fingerprint=joined_fingerprint([part.fingerprint for part in found]),
        num_planned=found[0].num_planned if mixture is None else mixture.num_planned,
    )


def _data_here(manifest: CheckpointManifest, config: RunConfig) -> DataHere | None:
    """The data of one source for a resume. None if it would be prepared again."""
    path, fingerprint = config.data.path, manifest.data_fingerprint
    if path is not None and is_prepared(path):
        there = StoreManifest.read(Path(path))
        require_settings(Path(path), there, config.data)
        require_sizes(Path(path), there)
        return DataHere(Path(path), there.fingerprint, there.num_examples)
    changes, cached = changed_data_keys(manifest, config), cached_manifest(fingerprint)
    if changes or cached is None:
        require_named_files(config)
    if changes and not (cached is not None and _is_moved(config, changes, cached)):
        raise DataError(
            f"data: preparing it again would give other data: {', '.join(changes)}",
            hint="undo the change; `sftctl resume RUN --dry-run` prepares and compares it",
        )
    if cached is None:
        return None
    return DataHere(cached_store(fingerprint), fingerprint, cached.num_examples)


def _is_moved(config: RunConfig, changes: Sequence[str], cached: StoreManifest) -> bool:
    """Whether only `data.path` has changed, and the files have the same content as before."""
    path = config.data.path
    if path is None or not all(change.startswith("data.path ") for change in changes):
        return False
    with find_sources([Path(path)]) as sources:
        return [one.sha256 for one in sources] == [one.sha256 for one in cached.sources]


def _changes(data: list[str], differences: Sequence[Difference], command: str) -> list[str]:
    """A note that lists changed keys of the configuration; [] if none has changed."""
    free = [f"{d.key}: {d.was} -> {d.now}" for d in differences if d.verdict == "free"]
    changed = [*data, *free]
    if not changed:
        return []
    return [
        f"config.toml has changed: {', '.join(changed)}; `{command} --dry-run` says what that means"
    ]
