"""ResumePlan: what a resume restores, what has changed since, and what it refuses."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sftctl.checkpoint.directory import named_checkpoints, newest_good
from sftctl.checkpoint.layout import CheckpointManifest, step_of
from sftctl.config.load import config_to_dict
from sftctl.config.schema import RunConfig
from sftctl.errors import ConfigError, IncompatibleCheckpoint, NoCheckpoint
from sftctl.runs.differences import (
    ComputeHere,
    DataHere,
    Difference,
    allowable_keys,
    differences_of,
    versions,
)
from sftctl.runs.directory import RunDir
from sftctl.runs.log import last_saved_step, require_metrics
from sftctl.train.preflight.inputs import Inputs, open_inputs, resolve_config
from sftctl.train.stop import StopRequest
from sftctl.world import ALONE

Announce = Callable[["ResumePlan", frozenset[str]], None]
"""Told the plan, and which of its differences are allowed."""


@dataclass(frozen=True, slots=True)
class ResumeRequest:
    """Which run to continue, and how."""

    run_dir: Path
    step: int | None = None  # None: the newest whole checkpoint
    epochs: int | None = None  # None: as the run was made
    allow: frozenset[str] = frozenset()  # differences that are meant
    announce: "Announce | None" = None  # told on rank 0 before anything is done

    def __post_init__(self) -> None:
        known = [*allowable_keys()]
        for key in sorted(self.allow - {*known}):
            raise ConfigError(
                f"--allow {key}: no such key; there are {', '.join(known)}",
                hint="the plan of a resume that is refused names the keys to allow",
            )

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
    differences: tuple[Difference, ...]

    @property
    def is_at_the_end(self) -> bool:
        """Whether the checkpoint is the last of the run as it was, and no more is asked for."""
        if self.manifest is None or self.manifest.step < self.manifest.total_steps:
            return False
        return not {"train.epochs", "train.max_steps"} & {d.key for d in self.differences}

    def lines(self, allow: Collection[str] = ()) -> list[str]:
        """The plan as text; what is in `allow` is no longer asked for."""
        if self.manifest is None or self.checkpoint is None:
            return [f"resume {self.run_dir}: no checkpoint yet, starting at step 0"]
        m = self.manifest
        titles = {"free": "changed", "allow": "needs --allow {}", "impossible": "impossible"}
        return [
            f"resume {self.run_dir} from {self.checkpoint.name}: step {m.step} of {m.total_steps}, "
            f"epoch {m.epoch}, step {m.step_in_epoch} of {m.steps_per_epoch} in it, "
            f"{m.examples_seen} examples seen, learning rate {m.learning_rate:.3g}",
            "restored: model, optimizer, scaler, progress; recomputed from seed and step: order of "
            "the data, learning rate, randomness",
            *(["nothing is left to train"] if self.is_at_the_end else []),
            *(f"skipped: {text}" for text in self.skipped),
            *(f"moved away: {name}" for name in self.abandoned),
            *(f"{titles[d.verdict_with(allow)].format(d.key)}: {d}" for d in self.differences),
        ]

    def refuse(self, allow: Collection[str]) -> None:
        """Raise IncompatibleCheckpoint for differences that are impossible or not allowed."""
        impossible = [d for d in self.differences if d.verdict == "impossible"]
        to_allow = [d for d in self.differences if d.verdict_with(allow) == "allow"]
        if impossible:
            raise IncompatibleCheckpoint(
                f"{self.checkpoint}: can't go on: {'; '.join(map(str, impossible))}",
                hint="put it back as it was, or start a new run with `sftctl train`",
            )
        if to_allow:
            flags = " ".join(f"--allow {d.key}" for d in to_allow)
            raise IncompatibleCheckpoint(
                f"{self.checkpoint}: would be another run: {'; '.join(map(str, to_allow))}",
                hint=f"put it back as it was; if it is meant: {flags}",
            )


def plan_resume(
    run: RunDir, config: RunConfig, inputs: Inputs, world_size: int, step: int | None
) -> ResumePlan:
    """Choose the newest whole checkpoint (or exactly `step`), and compare it with what is here.

    Raises NoCheckpoint or CorruptCheckpoint for a `step` that is not there or damaged,
    CheckpointError where metrics.jsonl lacks what it had then, and ConfigError where fewer steps
    are asked for than are trained.
    """
    named = named_checkpoints(run.checkpoints)
    if step is None and not named:
        _require_nothing_saved(run)
        return ResumePlan(run.path, None, None, (), (), ())
    found = newest_good(run.checkpoints, step)
    manifest, store = found.manifest, inputs.train
    require_metrics(run.path, manifest.metrics_bytes)
    data = DataHere(store.path, store.manifest.fingerprint, len(store))
    later = [p.name for p in named if _step(p) > manifest.step]
    return ResumePlan(
        run_dir=run.path,
        checkpoint=found.path,
        manifest=manifest,
        skipped=tuple(f"{p.name}: {'; '.join(problems)}" for p, problems in found.skipped),
        abandoned=tuple(later),
        differences=tuple(differences_of(manifest, config, data, _compute_here(world_size))),
    )


def _compute_here(world_size: int) -> ComputeHere:
    cpu = torch.backends.cpu.get_cpu_capability()
    return ComputeHere(world_size, torch.get_num_threads(), versions(cpu))


def plan_request(config: RunConfig, request: ResumeRequest, num_ranks: int) -> ResumePlan:
    """The plan of a resume that is not carried out."""
    run, config = RunDir.open(request.run_dir), request.applied_to(config)
    inputs = open_inputs(config, ALONE, StopRequest())
    return plan_resume(run, config, inputs, num_ranks, request.step)


def existing_run(config: RunConfig, announce: Announce | None = None) -> ResumeRequest | None:
    """The run at `output_dir` if there is one; ConfigError if it was made otherwise."""
    if config.output_dir is None:
        raise ConfigError(
            "--auto-resume needs --output-dir: the run to go on with",
            hint="add --output-dir runs/NAME, the same one each time",
        )
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
    return ResumeRequest(config.output_dir, announce=announce)


def _require_nothing_saved(run: RunDir) -> None:
    """To start at step 0 would wipe out what a run whose checkpoints are gone still has."""
    step = last_saved_step(run.path)
    if step is None and not run.final.exists():
        return
    told = f"events.jsonl tells of one of step {step}" if step is not None else "final/ is there"
    raise NoCheckpoint(
        f"{run.checkpoints}: no checkpoint, but {told}",
        hint=f"put them back (is a disk missing?), or begin anew: sftctl train {run.config_file}",
    )


def _step(path: Path) -> int:
    step = step_of(path.name)
    if step is None:
        raise NoCheckpoint(f"{path}: not the name of a checkpoint")
    return step
