"""ResumePlan: what a resume restores, what has changed since, and what it refuses."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from sftctl.checkpoint.directory import GoodCheckpoint, named_checkpoints, newest_good
from sftctl.checkpoint.layout import CheckpointManifest, step_of
from sftctl.config.schema import SECTIONS, RunConfig
from sftctl.errors import ConfigError
from sftctl.runs.differences import (
    ComputeHere,
    DataHere,
    Difference,
    allowable_keys,
    differences_at_step_0,
    differences_of,
    versions,
)
from sftctl.runs.directory import RunDir
from sftctl.runs.resumable import (
    obstacles_in_differences,
    obstacles_in_run,
    require_more_steps,
    require_nothing_saved,
)
from sftctl.train.preflight.inputs import Inputs, open_inputs, resolve_config
from sftctl.train.stop import StopRequest
from sftctl.world import ALONE

Announce = Callable[["ResumePlan", frozenset[str]], None]
"""Called with the plan and the keys that are allowed to differ."""


@dataclass(frozen=True, slots=True)
class ResumeRequest:
    """Which run to resume, and how."""

    run_dir: Path
    step: int | None = None  # None: the newest complete checkpoint
    epochs: int | None = None  # None: as in the run's configuration
    max_steps: int | None = None  # None: as in the run's configuration
    allow: frozenset[str] = frozenset()  # keys that may differ
    config: RunConfig | None = None  # of `train --auto-resume`; None: the run's config.toml
    announce: "Announce | None" = None  # called on rank 0 before anything is changed

    def __post_init__(self) -> None:
        known = [*allowable_keys()]
        for key in sorted(self.allow - {*known}):
            raise ConfigError(
                f"--allow {key}: no such key; there are {', '.join(known)}",
                hint="the plan of a resume that is refused names the keys to allow",
            )

    @property
    def length_flags(self) -> str:
        """The flags that ask for another length, as they were typed."""
        flags = {"--epochs": self.epochs, "--max-steps": self.max_steps}
        return " ".join(f"{flag} {value}" for flag, value in flags.items() if value is not None)

    def applied_to(self, config: RunConfig) -> RunConfig:
        """The run's configuration with what this request changes."""
        if self.config is not None:
            config = _with_decisions(self.config, config)
        train = config.train
        epochs, max_steps = self.epochs or train.epochs, self.max_steps or train.max_steps
        return replace(config, train=replace(train, epochs=epochs, max_steps=max_steps))


def _with_decisions(config: RunConfig, run_config: RunConfig) -> RunConfig:
    """A command's configuration; settings that it does not set keep the run's values."""
    sections = {}
    for name in SECTIONS:
        given, decided = getattr(config, name), getattr(run_config, name)
        open_keys = {item.name for item in fields(given) if getattr(given, item.name) == "auto"}
        if name == "data" and given.max_seq_len is None:
            open_keys.add("max_seq_len")
        sections[name] = replace(given, **{key: getattr(decided, key) for key in open_keys})
    return resolve_config(RunConfig(output_dir=run_config.output_dir, **sections))


@dataclass(frozen=True, slots=True)
class ResumePlan:
    """Where a run continues, known before anything is loaded or changed."""

    run_dir: Path
    checkpoint: Path | None  # None: no checkpoint yet, the run starts at step 0
    manifest: CheckpointManifest | None
    skipped: tuple[str, ...]  # newer checkpoints that are damaged, and how
    abandoned: tuple[str, ...]  # later checkpoints, to be moved away
    differences: tuple[Difference, ...]
    total_steps: int | None = None  # of the run as it is now; None: no checkpoint yet

    def lines(self, allow: Collection[str] = ()) -> list[str]:
        """The plan as text; keys in `allow` are shown as changed."""
        titles = {"free": "changed", "allow": "needs --allow {}", "impossible": "impossible"}
        changes = [f"{titles[d.verdict_with(allow)].format(d.key)}: {d}" for d in self.differences]
        if self.manifest is None or self.checkpoint is None or self.total_steps is None:
            return [f"resume {self.run_dir}: no checkpoint yet, starting at step 0", *changes]
        m = self.manifest
        return [
            f"resume {self.run_dir} from {self.checkpoint.name}: step {m.step} of {m.total_steps}, "
            f"epoch {m.epoch}, step {m.step_in_epoch} of {m.steps_per_epoch} in it, "
            f"{m.examples_seen} examples seen, learning rate {m.learning_rate:.3g}",
            "restored: model, optimizer, scaler, progress; recomputed from seed and step: order of "
            "the data, learning rate, randomness",
            *(["nothing is left to train"] if m.step >= self.total_steps else []),
            *(f"skipped: {text}" for text in self.skipped),
            *(f"moved away: {name}" for name in self.abandoned),
            *changes,
        ]

    def refuse(self, request: ResumeRequest) -> None:
        """Raise IncompatibleCheckpoint for differences that are impossible or not allowed."""
        where = self.checkpoint or self.run_dir
        for obstacle in obstacles_in_differences(where, self.differences, request.allow):
            if request.config is not None:  # `train` has no --allow
                obstacle.hint = "give the options of the run, or another --output-dir"
            raise obstacle


def choose_checkpoint(run: RunDir, step: int | None) -> GoodCheckpoint | None:
    """The newest complete checkpoint, or the one of `step`; None: the run has none yet.

    Raises NoCheckpoint if it is missing, or CorruptCheckpoint if it is damaged.
    """
    if step is None and not named_checkpoints(run.checkpoints):
        require_nothing_saved(run)
        return None
    return newest_good(run.checkpoints, step)


def plan_resume(
    run: RunDir,
    request: ResumeRequest,
    config: RunConfig,
    found: GoodCheckpoint | None,
    inputs: Inputs,
    world_size: int,
) -> ResumePlan:
    """Compare the checkpoint with what is here; `config` is what the resume would train with.

    Raises CheckpointError if a file of the run is missing. Raises ConfigError if the requested
    number of steps is below the number trained, or leaves nothing to train.
    """
    run_config = run.config()
    if found is None:
        differences = tuple(differences_at_step_0(run_config, config))
        return ResumePlan(run.path, None, None, (), (), differences)
    manifest, store = found.manifest, inputs.train
    for obstacle in obstacles_in_run(run, found.path, manifest, config):
        raise obstacle
    if request.length_flags:
        require_more_steps(manifest, config, request.length_flags, is_new=config != run_config)
    data = DataHere(store.path, store.manifest.fingerprint, len(store))
    cpu = torch.backends.cpu.get_cpu_capability()
    compute = ComputeHere(world_size, torch.get_num_threads(), versions(cpu))
    names = [path.name for path in named_checkpoints(run.checkpoints)]
    return ResumePlan(
        run_dir=run.path,
        checkpoint=found.path,
        manifest=manifest,
        skipped=tuple(f"{p.name}: {'; '.join(problems)}" for p, problems in found.skipped),
        abandoned=tuple(name for name in names if (step_of(name) or 0) > manifest.step),
        differences=tuple(differences_of(manifest, config, data, compute)),
        total_steps=config.train.total_steps(manifest.steps_per_epoch),
    )


def plan_request(request: ResumeRequest, num_ranks: int) -> ResumePlan:
    """The plan of a resume, without the resume."""
    run = RunDir.open(request.run_dir)
    config = request.applied_to(run.config())
    found = choose_checkpoint(run, request.step)
    resumed = found.manifest if found is not None else None
    inputs = open_inputs(config, ALONE, StopRequest(), resumed)
    return plan_resume(run, request, config, found, inputs, num_ranks)


def existing_run(config: RunConfig, announce: Announce | None = None) -> ResumeRequest | None:
    """The request to continue the run at `output_dir`, by the rules of a resume; None: no run."""
    if config.output_dir is None:
        raise ConfigError(
            "--auto-resume needs --output-dir: the run to continue",
            hint="add --output-dir runs/NAME, the same one each time",
        )
    if not RunDir(config.output_dir).run_file.is_file():
        return None
    return ResumeRequest(config.output_dir, config=config, announce=announce)
