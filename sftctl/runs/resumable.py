"""Whether a checkpoint can be resumed on this machine now. `resume` and `inspect-ckpt` use this.

Loads neither torch nor numpy.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from glob import has_magic
from pathlib import Path

from sftctl.checkpoint.layout import CheckpointManifest
from sftctl.config.schema import RunConfig, TrainConfig
from sftctl.data.manifest import StoreManifest, cached_store, is_prepared
from sftctl.data.storage.hashes import require_sizes
from sftctl.errors import ConfigError, DataError, IncompatibleCheckpoint, NoCheckpoint, SftctlError
from sftctl.runs.base import require_same_base
from sftctl.runs.choosing import end_of_patience, is_out_of_patience
from sftctl.runs.differences import Difference, changed_data_keys
from sftctl.runs.directory import RunDir
from sftctl.runs.log import last_step_of, require_metrics
from sftctl.runs.mixtures import sources_with_paths, total_steps
from sftctl.runs.origin import of_another_run
from sftctl.runs.place import foreign_parts
from sftctl.words import counted, in_shell


def obstacles_in_run(
    run: RunDir, checkpoint: Path, manifest: CheckpointManifest, config: RunConfig
) -> Iterator[SftctlError]:
    """The reasons why this checkpoint can't be resumed with this run directory and `config`."""
    if foreign := [*foreign_parts(run.path)]:
        yield from foreign
        return
    if (error := of_another_run(run, checkpoint, manifest)) is not None:
        yield error
    if not (file := run.model_folder / "config.json").is_file():
        yield NoCheckpoint(f"{file}: missing", hint="put back the run's model folder from a copy")
    try:
        require_metrics(run.path, manifest.metrics_bytes, manifest.step)
    except SftctlError as error:
        yield error
    if manifest.base is not None:
        try:
            require_same_base(checkpoint, manifest.base, config.model.name, run.config_file)
        except SftctlError as error:
            yield error
    total = total_steps(config.train, manifest)
    if manifest.step > total:
        yield ConfigError(
            f"{_end_of(config.train, manifest)}, and the checkpoint is of step {manifest.step}",
            hint=f"a run can only get longer; `sftctl resume {in_shell(run.path)} --step N` goes "
            "back",
        )
    if config.train.dtype == manifest.dtype == "float16" and not manifest.scaler:
        yield IncompatibleCheckpoint(f"{checkpoint}: its manifest has no scaler state")


def obstacles_in_differences(
    where: Path, differences: Iterable[Difference], allow: Collection[str] = ()
) -> Iterator[IncompatibleCheckpoint]:
    """The errors for changes that make a resume impossible, or need an --allow that is missing."""
    differences = list(differences)
    impossible = [d for d in differences if d.verdict == "impossible"]
    if impossible:
        yield IncompatibleCheckpoint(
            f"{where}: can't continue: {'; '.join(map(str, impossible))}",
            hint="undo the change, or start a new run with `sftctl train`",
        )
    to_allow = [d for d in differences if d.verdict_with(allow) == "allow"]
    if to_allow:
        yield IncompatibleCheckpoint(
            f"{where}: would be a different run: {'; '.join(map(str, to_allow))}",
            hint=f"undo the change, or allow it: {allow_flags(to_allow)}",
        )


def changed_sets(
    manifest: CheckpointManifest, fingerprints: Mapping[str, str]
) -> Iterator[Difference]:
    """The validation sets whose fingerprint is not the recorded one."""
    for name, now in fingerprints.items():
        was = manifest.set_fingerprints.get(name)
        if was not in (None, now):
            effect = "its rows or their preparation changed: later evaluations are of other rows"
            key = f"evaluation.sets: {name}"
            yield Difference(key, str(was)[:12], now[:12], "free", effect)


def require_named_files(config: RunConfig) -> None:
    """DataError or ConfigError if a path in config.toml does not exist. The message names the key.

    Call this before a run prepares its data again, because the run or the data may have been moved.
    """
    run, data, model = RunDir(config.output_dir or Path()), config.data, config.model
    keys = (
        ("data.path", data.path, DataError),
        *(("data.sources", source.path, DataError) for source in sources_with_paths(data)),
        ("data.chat_template", data.chat_template, ConfigError),
        ("model.tokenizer", model.tokenizer, ConfigError),
        ("model.name", None if model.tokenizer else model.name, ConfigError),
    )
    for key, value, error in keys:
        if value is None or not Path(value).is_absolute() or has_magic(str(value)):
            continue
        if not Path(value).exists():
            hint = f"{key} in {run.config_file} names it: put it back, or correct the key"
            raise error(f"{key}: {value}: missing", hint)


def allow_flags(differences: Iterable[Difference]) -> str:
    """The flags of `resume` that allow these differences."""
    return " ".join(f"--allow {d.key}" for d in differences if d.verdict == "allow")


def require_nothing_saved(run: RunDir) -> None:
    """NoCheckpoint if the run has saved checkpoints but has none now.

    A start at step 0 would erase such a run. Perhaps the checkpoints are on a disk that is not
    mounted.
    """
    step = last_step_of(run.path, "saved")
    if step is None and not run.final.exists():
        return
    lost = f"events.jsonl has one of step {step}" if step is not None else "final/ is there"
    raise NoCheckpoint(
        f"{run.checkpoints}: no checkpoint, but {lost}",
        hint=f"put them back (is a disk missing?), or start again: "
        f"sftctl train {in_shell(run.config_file)}",
    )


def recorded_store(manifest: CheckpointManifest, config: RunConfig) -> Path | None:
    """The store in the cache that the checkpoint was trained on, if `config` has the same data.

    None if the store is not there, if the data is not the same, or if `data.path` is a store.
    """
    if changed_data_keys(manifest, config) or is_prepared(config.data.path):
        return None
    fingerprint = manifest.data_fingerprint
    return cached_store(fingerprint) if cached_manifest(fingerprint) is not None else None


def cached_manifest(fingerprint: str) -> StoreManifest | None:
    """The manifest of a store in the cache; None if the store is missing or damaged."""
    try:
        there = StoreManifest.read(cached_store(fingerprint))
        require_sizes(cached_store(fingerprint), there)
    except DataError:
        return None
    return there if there.fingerprint == fingerprint else None


def ended_early(manifest: CheckpointManifest, config: RunConfig) -> str | None:
    """The reason if `train.patience` has ended the run before its last step; else None."""
    train, validation = config.train, manifest.validation
    is_trained = manifest.step >= total_steps(train, manifest)
    if is_trained or validation is None or not is_out_of_patience(train, validation):
        return None
    return end_of_patience(validation)


def flags_to_train_longer(train: TrainConfig, manifest: CheckpointManifest) -> str:
    """The flags of `resume` that raise the limit that ends the run, such as `--epochs N`."""
    return flags_to_raise(train, total_steps(replace(train, max_steps=None), manifest))


def flags_to_raise(train: TrainConfig, steps_of_epochs: int) -> str:
    """The same flags, given the number of steps that all epochs have together."""
    flags = []
    if train.max_steps is None or steps_of_epochs <= train.max_steps:
        flags.append("--epochs N")
    if train.max_steps is not None and train.max_steps <= steps_of_epochs:
        flags.append("--max-steps N")
    return " ".join(flags)


def require_more_steps(
    run: Path, manifest: CheckpointManifest, config: RunConfig, asked: str, *, is_new: bool
) -> None:
    """ConfigError if the flags `asked` set the run's length, but leave no step to train.

    No error if the flags change nothing (`is_new` is False): a finished run may be resumed again.
    """
    if (reason := ended_early(manifest, config)) is not None:
        if not is_new:
            return
        raise ConfigError(
            f"{asked}: nothing to train: {reason}",
            hint="raise train.patience in the run's config.toml to train on",
        )
    if manifest.step < total_steps(config.train, manifest):
        return
    flags = flags_to_train_longer(config.train, manifest)
    names = {flag for flag in ("--epochs", "--max-steps") if flag in flags}
    if not is_new and names & {*asked.split()}:
        return
    raise ConfigError(
        f"{asked}: nothing to train: {_end_of(config.train, manifest)}, and the "
        f"checkpoint is of step {manifest.step}",
        hint=f"`sftctl resume {in_shell(run)} {flags}` trains longer",
    )


def _end_of(train: TrainConfig, manifest: CheckpointManifest) -> str:
    """The limit that ends the run, and its number of steps."""
    steps = counted(total_steps(train, manifest), "step")
    if flags_to_train_longer(train, manifest) == "--max-steps N":
        return f"train.max_steps: {steps}"
    return f"train.epochs: {counted(train.epochs, 'epoch')}, {steps}"


def require_same_kind(run_dir: Path, config: RunConfig, run_config: RunConfig) -> None:
    """IncompatibleCheckpoint if the command trains an adapter and the run does not, or the reverse.

    Check this first, because other settings of the command depend on it.
    """
    if config.adapter.lora != run_config.adapter.lora:
        kinds = ("the model itself", "an adapter (adapter.lora)")
        was, now = kinds[run_config.adapter.lora], kinds[config.adapter.lora]
        raise IncompatibleCheckpoint(
            f"{run_dir}: trains {was}, and this command {now}",
            hint="use another --output-dir for a new run, or the settings of this run",
        )
