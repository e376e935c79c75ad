"""Whether a checkpoint of ours can be resumed here and now; if not, why, and what would fix it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sftctl.checkpoint.directory import list_checkpoints
from sftctl.checkpoint.layout import CheckpointManifest
from sftctl.config.load import config_to_dict
from sftctl.config.schema import RunConfig
from sftctl.data.manifest import StoreManifest
from sftctl.environment import cache_folder
from sftctl.errors import SftctlError
from sftctl.runs.directory import RunDir
from sftctl.runs.log import require_metrics
from sftctl.words import counted

Obstacle = tuple[str, str]  # why not, and what to do


@dataclass(frozen=True, slots=True)
class Readiness:
    """The verdict on one checkpoint."""

    advice: str  # what to type, or what removes the first obstacle
    obstacles: list[str] = field(default_factory=list)  # why it can't be resumed; empty: it can
    data_store: dict[str, Any] | None = None  # path, fits (None: not checked), why
    notes: list[str] = field(default_factory=list)


def judge(checkpoint: Path, manifest: CheckpointManifest | None, is_damaged: bool) -> Readiness:
    """Whether `sftctl resume` can continue from this checkpoint (None: no readable manifest)."""
    run = RunDir(checkpoint.absolute().parent.parent)
    shown = _shown(checkpoint, run)
    if manifest is None or is_damaged:
        return Readiness(f"sftctl resume {shown}   (falls back to the newest whole checkpoint)")
    try:
        config = RunDir.open(run.path).config()
    except SftctlError as error:
        return Readiness("put it back into RUN/checkpoints of its run", [error.message])
    store, data_obstacles = _judge_data(manifest, config, shown)
    obstacles = [*_missing_files(run, manifest), *data_obstacles]
    notes = _changed_config(manifest, config, shown)
    if obstacles:
        advice = obstacles[0][1]
    elif list_checkpoints(run.checkpoints)[-1].name != checkpoint.absolute().name:
        advice = f"sftctl resume {shown} --step {manifest.step}   (sets later ones aside)"
    elif manifest.step >= manifest.total_steps:
        notes = [*notes, "finished: every step is trained"]
        advice = f"sftctl resume {shown} --epochs N   (to train longer)"
    else:
        advice = f"sftctl resume {shown}"
    return Readiness(advice, [why for why, _ in obstacles], store, notes)


def _shown(checkpoint: Path, run: RunDir) -> Path:
    """The run's path as the user would type it."""
    return run.path if checkpoint.is_absolute() else checkpoint.parent.parent


def _missing_files(run: RunDir, manifest: CheckpointManifest) -> list[Obstacle]:
    """What the run directory lacks."""
    files = [run.model_folder / name for name in ("config.json", "tokenizer.json")]
    found = [
        (f"{file}: missing", "put back the run's model folder")
        for file in files
        if not file.is_file()
    ]
    try:
        require_metrics(run.path, manifest.metrics_bytes)
    except SftctlError as error:
        found.append((error.message, error.hint or "put it back from a copy"))
    return found


def _judge_data(
    manifest: CheckpointManifest, config: RunConfig, shown: Path
) -> tuple[dict[str, Any], list[Obstacle]]:
    """Which store a resume would open and whether it fits, and the obstacles in the data."""
    given = config.data.path
    is_store = given is not None and Path(given).is_dir()
    cached = cache_folder() / "stores" / manifest.data_fingerprint[:32]
    store = Path(given) if given is not None and is_store else cached
    if given is not None and not Path(given).exists():
        missing = {"path": given, "fits": None, "why": "missing"}
        return missing, [(f"data: {given}: missing", f"put {given} back, or prepare it as it was")]
    found: list[Obstacle] = []
    name = config.model.tokenizer or config.model.name
    if not is_store and Path(name).is_absolute() and not Path(name).exists():
        why = f"tokenizer: {name}: missing, and the data is prepared with it"
        found.append((why, f"put {name} back"))
    if not is_store and not cached.is_dir():
        why = "not in the cache: resume prepares it again"
        return {"path": str(store), "fits": None, "why": why}, found
    try:
        there = StoreManifest.read(store)
    except SftctlError as error:
        found.append((f"data: {error.message}", error.hint or "prepare the data again"))
        return {"path": str(store), "fits": None, "why": error.message}, found
    if there.fingerprint == manifest.data_fingerprint:
        return {"path": str(store), "fits": True, "why": None}, found
    found.append(_of_other_data(there, manifest, store, shown))
    return {"path": str(store), "fits": False, "why": "other data: another fingerprint"}, found


def _of_other_data(
    there: StoreManifest, manifest: CheckpointManifest, store: Path, run: Path
) -> Obstacle:
    was, now = manifest.data_fingerprint[:12], there.fingerprint[:12]
    why = f"data: {store} is not what it was trained on: {was} -> {now}"
    from sftctl.data.plan import steps_per_epoch  # loads numpy, seldom needed

    steps = steps_per_epoch(there.num_examples, manifest.global_batch_size)
    if steps != manifest.steps_per_epoch:
        what = f"{why}; {counted(steps, 'step')} an epoch, not {manifest.steps_per_epoch}"
        return what, "put the data back as it was, or start a new run"
    return why, f"sftctl resume {run} --allow data   (only if it is meant)"


def _changed_config(manifest: CheckpointManifest, config: RunConfig, shown: Path) -> list[str]:
    """A note on the configuration keys that were changed since the checkpoint was saved."""
    now = config_to_dict(config)
    changed = [
        f"{section}.{key}: {was} -> {now[section][key]}"
        for section, values in manifest.config.items()
        if isinstance(values, dict)
        for key, was in values.items()
        if key in now.get(section, {}) and now[section][key] != was
    ]
    if not changed:
        return []
    return [
        f"config.toml is no longer what it was: {', '.join(changed)}; "
        f"`sftctl resume {shown} --dry-run` says what that means"
    ]
