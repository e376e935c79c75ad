"""Whether a checkpoint of ours can be resumed here and now; if not, why, and what would mend it."""

from collections.abc import Iterator
from pathlib import Path

from sftctl.checkpoint.directory import list_checkpoints
from sftctl.checkpoint.layout import CheckpointManifest
from sftctl.config.load import config_to_dict
from sftctl.config.schema import RunConfig
from sftctl.data.manifest import StoreManifest
from sftctl.environment import cache_folder
from sftctl.errors import SftctlError
from sftctl.inspection.report import Report
from sftctl.runs.directory import RunDir
from sftctl.runs.log import require_metrics
from sftctl.words import counted

Obstacle = tuple[str, str]  # why not, and what to do


def judge(report: Report, manifest: CheckpointManifest | None) -> None:
    """Fill in `obstacles`, `advice`, `data_store` and `notes`."""
    run = RunDir(report.path.absolute().parent.parent)
    shown = _shown(report.path, run)
    if manifest is None or report.problems:
        report.advice = f"sftctl resume {shown}   (falls back to the newest whole checkpoint)"
        return
    obstacles = list(_obstacles(report, manifest, run))
    report.obstacles = [why for why, _ in obstacles]
    if obstacles:
        report.advice = obstacles[0][1]
    elif list_checkpoints(run.checkpoints)[-1].name != report.path.absolute().name:
        report.advice = f"sftctl resume {shown} --step {manifest.step}   (sets later ones aside)"
    elif manifest.step >= manifest.total_steps:
        report.notes.append("finished: every step is trained")
        report.advice = f"sftctl resume {shown} --epochs N   (to train longer)"
    else:
        report.advice = f"sftctl resume {shown}"


def _shown(checkpoint: Path, run: RunDir) -> Path:
    """The run's path as the user would type it."""
    return run.path if checkpoint.is_absolute() else checkpoint.parent.parent


def _obstacles(report: Report, manifest: CheckpointManifest, run: RunDir) -> Iterator[Obstacle]:
    try:
        config = RunDir.open(run.path).config()
    except SftctlError as error:
        yield error.message, "put it back into RUN/checkpoints of its run"
        return
    for name in ("config.json", "tokenizer.json"):
        if not (run.model_folder / name).is_file():
            yield f"{run.model_folder / name}: missing", "put back the run's model folder"
    try:
        require_metrics(run.path, manifest.metrics_bytes)
    except SftctlError as error:
        yield error.message, error.hint or "put it back from a copy"
    yield from _of_data(report, manifest, config, run)
    changed = _changed(manifest, config)
    if changed:
        report.notes.append(
            f"config.toml is no longer what it was: {', '.join(changed)}; "
            f"`sftctl resume {_shown(report.path, run)} --dry-run` says what that means"
        )


def _of_data(
    report: Report, manifest: CheckpointManifest, config: RunConfig, run: RunDir
) -> Iterator[Obstacle]:
    given = config.data.path
    is_store = given is not None and Path(given).is_dir()
    cached = cache_folder() / "stores" / manifest.data_fingerprint[:32]
    store = Path(given) if given is not None and is_store else cached
    report.data_store = {"path": str(store), "fits": None, "why": None}
    if given is not None and not Path(given).exists():
        report.data_store |= {"path": given, "why": "missing"}
        yield f"data: {given}: missing", f"put {given} back, or prepare it as it was"
        return
    name = config.model.tokenizer or config.model.name
    if not is_store and Path(name).is_absolute() and not Path(name).exists():
        yield f"tokenizer: {name}: missing, and the data is prepared with it", f"put {name} back"
    if not is_store and not cached.is_dir():
        report.data_store["why"] = "not in the cache: resume prepares it again"
        return
    try:
        there = StoreManifest.read(store)
    except SftctlError as error:
        report.data_store["why"] = error.message
        yield f"data: {error.message}", error.hint or "prepare the data again"
        return
    report.data_store["fits"] = there.fingerprint == manifest.data_fingerprint
    if there.fingerprint != manifest.data_fingerprint:
        report.data_store["why"] = "other data: another fingerprint"
        yield _of_other_data(there, manifest, store, _shown(report.path, run))


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


def _changed(manifest: CheckpointManifest, config: RunConfig) -> list[str]:
    """Keys of the configuration that are not as they were when this was saved."""
    now = config_to_dict(config)
    return [
        f"{section}.{key}: {was} -> {now[section][key]}"
        for section, values in manifest.config.items()
        if isinstance(values, dict)
        for key, was in values.items()
        if key in now.get(section, {}) and now[section][key] != was
    ]
