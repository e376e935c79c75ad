"""ResumePlan: what a resume restores, what has changed since, and what it refuses."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sftctl.checkpoint.directory import list_checkpoints, newest_good
from sftctl.checkpoint.layout import CheckpointManifest, read_manifest, step_of
from sftctl.config.load import config_to_dict
from sftctl.config.schema import RunConfig
from sftctl.errors import ConfigError, IncompatibleCheckpoint, NoCheckpoint
from sftctl.train.inputs import resolve_config
from sftctl.train.rundir import RunDir
from sftctl.train.versions import versions


@dataclass(frozen=True, slots=True)
class ResumeRequest:
    """Which run to continue, and how."""

    run_dir: Path
    step: int | None = None  # None: the newest whole checkpoint
    epochs: int | None = None  # None: as the run was made

    def applied_to(self, config: RunConfig) -> RunConfig:
        """The run's configuration with what this request changes."""
        if self.epochs is None:
            return config
        return replace(config, train=replace(config.train, epochs=self.epochs))


@dataclass(frozen=True, slots=True)
class ResumePlan:
    """Where a run goes on, told before it does."""

    run_dir: Path
    checkpoint: Path | None  # None: no checkpoint yet, the run starts at step 0
    manifest: CheckpointManifest | None
    skipped: tuple[str, ...]  # newer checkpoints that are damaged, and how
    abandoned: tuple[str, ...]  # checkpoints beyond this point, to be moved away
    changes: tuple[str, ...]  # what differs from the checkpoint, and what that means

    def lines(self) -> list[str]:
        """The plan as text."""
        if self.manifest is None or self.checkpoint is None:
            return [f"resume {self.run_dir}: no checkpoint yet, starting at step 0"]
        m = self.manifest
        head = (
            f"resume {self.run_dir} from {self.checkpoint.name}: step {m.step} of {m.total_steps}, "
            f"epoch {m.epoch}, step {m.step_in_epoch} of {m.steps_per_epoch} in it, "
            f"{m.examples_seen} examples seen, learning rate {m.learning_rate:.3g}"
        )
        return [
            head,
            "restored: model, optimizer, scaler, progress; recomputed from seed and step: order of "
            "the data, learning rate, randomness",
            *(f"skipped: {text}" for text in self.skipped),
            *(f"moved away: {name}" for name in self.abandoned),
            *(f"changed: {text}" for text in self.changes),
        ]


def plan_resume(run: RunDir, config: RunConfig, world_size: int, step: int | None) -> ResumePlan:
    """Choose the newest whole checkpoint (or exactly `step`), and compare it with `config`.

    Raises NoCheckpoint or CorruptCheckpoint for a `step` that is not there or damaged, and
    IncompatibleCheckpoint where going on would train other steps than the run was made of.
    """
    if step is None and not list_checkpoints(run.checkpoints):
        return ResumePlan(run.path, None, None, (), (), ())
    path, bad = newest_good(run.checkpoints, step)
    manifest = read_manifest(path)
    _refuse_other_steps(path, manifest, config)
    later = [p.name for p in list_checkpoints(run.checkpoints) if _step(p) > manifest.step]
    return ResumePlan(
        run_dir=run.path,
        checkpoint=path,
        manifest=manifest,
        skipped=tuple(f"{p.name}: {'; '.join(problems)}" for p, problems in bad),
        abandoned=tuple(later),
        changes=tuple(_changes(manifest, config, world_size)),
    )


def plan_request(config: RunConfig, request: ResumeRequest, num_ranks: int) -> ResumePlan:
    """The plan of a resume that is not carried out."""
    run = RunDir.open(request.run_dir)
    return plan_resume(run, request.applied_to(config), num_ranks, request.step)


def existing_run(config: RunConfig) -> ResumeRequest | None:
    """The run at `output_dir` if there is one; ConfigError if it was made otherwise."""
    if config.output_dir is None:
        raise ConfigError("--auto-resume needs --output-dir: the run to go on with")
    if not (config.output_dir / "run.json").is_file():
        return None
    was = config_to_dict(RunDir.open(config.output_dir).config())
    now = config_to_dict(resolve_config(config))
    for section, values in now.items():
        for key, value in values.items():
            if value not in ("auto", was[section].get(key)):
                raise ConfigError(
                    f"{config.output_dir}: --auto-resume found a run with {section}.{key} = "
                    f"{was[section].get(key)}, not {value}",
                    hint="give the same options, or another --output-dir",
                )
    return ResumeRequest(config.output_dir)


def check_data(plan: ResumePlan, fingerprint: str, where: Path) -> None:
    """Refuse other data than the checkpoint was trained on."""
    if plan.manifest is not None and plan.manifest.data_fingerprint != fingerprint:
        raise IncompatibleCheckpoint(
            f"{plan.checkpoint}: trained on data {plan.manifest.data_fingerprint[:12]}, "
            f"but {where} is {fingerprint[:12]}",
            hint="put the run's data back, or start a new run with `sftctl train`",
        )


def _step(path: Path) -> int:
    step = step_of(path.name)
    if step is None:
        raise NoCheckpoint(f"{path}: not the name of a checkpoint")
    return step


def _refuse_other_steps(path: Path, manifest: CheckpointManifest, config: RunConfig) -> None:
    was, now = manifest.config["train"], config_to_dict(config)["train"]
    for key in ("batch_size", "accumulation_steps", "seed"):
        if was[key] != now[key]:
            raise IncompatibleCheckpoint(
                f"{path}: train.{key} was {was[key]}, config.toml now says {now[key]}: the steps "
                "would hold other examples",
                hint="put the old value back, or start a new run with `sftctl train`",
            )


def _changes(manifest: CheckpointManifest, config: RunConfig, world_size: int) -> list[str]:
    changes: list[str] = []
    if manifest.world_size != world_size:
        changes.append(
            f"{manifest.world_size} ranks -> {world_size}: the same examples in every step, sums "
            "rounded otherwise"
        )
    elif manifest.num_threads != torch.get_num_threads():
        changes.append(
            f"{manifest.num_threads} threads -> {torch.get_num_threads()}: sums rounded otherwise"
        )
    now = config_to_dict(config)
    for section, values in manifest.config.items():
        for key, was in values.items():
            is_now = now[section].get(key)
            if is_now != was:
                changes.append(f"{section}.{key}: {was} -> {is_now}")
    for name, version in versions().items():
        was = manifest.versions.get(name)
        if was != version:
            changes.append(f"{name} {was} -> {version}: bits may differ")
    return changes
