"""ResumePlan: which checkpoint a resume restores, and which changes it finds and refuses."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from sftctl.checkpoint.damage import unknown_files
from sftctl.checkpoint.directory import GoodCheckpoint, named_checkpoints, newest_good
from sftctl.checkpoint.layout import CheckpointManifest, step_of
from sftctl.checkpoint.sealed import is_sealed, read_seal
from sftctl.config.schema import SECTIONS, RunConfig
from sftctl.data.loading.source_counts import SourceCounts
from sftctl.data.plan import DataPosition
from sftctl.data.storage.joined import Store
from sftctl.errors import ConfigError
from sftctl.runs.choosing import final_of, require_validation
from sftctl.runs.differences import (
    OLDER_RULES,
    SAMPLE_CHANGED,
    ComputeHere,
    DataHere,
    Difference,
    changed_data_keys,
    differences_at_step_0,
    differences_of,
    versions,
)
from sftctl.runs.directory import RunDir
from sftctl.runs.effects import require_allowable
from sftctl.runs.final import problems_of_final
from sftctl.runs.mixtures import begins_epoch_again, continued, total_steps
from sftctl.runs.resumable import (
    changed_sets,
    ended_early,
    obstacles_in_differences,
    obstacles_in_run,
    require_more_steps,
    require_nothing_saved,
    require_same_kind,
)
from sftctl.train.answers.questions import require_metrics
from sftctl.train.preflight.inputs import Inputs, is_of_older_rules, open_inputs
from sftctl.train.preflight.resolve import resolve_config
from sftctl.train.stop import StopRequest
from sftctl.world import ALONE, choose_device

Announce = Callable[["ResumePlan", frozenset[str]], None]
"""Receives the plan, and the keys that may differ because of `--allow`."""


@dataclass(frozen=True, slots=True)
class ResumeRequest:
    """Which run to resume, and with which changes."""

    run_dir: Path
    step: int | None = None  # None: the newest complete checkpoint
    epochs: int | None = None  # None: as in the run's configuration
    max_steps: int | None = None  # None: as in the run's configuration
    allow: frozenset[str] = frozenset()  # keys of the configuration that may differ
    config: RunConfig | None = None  # of `train --auto-resume`; None: the run's config.toml
    announce: "Announce | None" = None  # called on rank 0 before anything is changed

    def __post_init__(self) -> None:
        require_allowable(self.allow)

    @property
    def length_flags(self) -> str:
        """The flags that set another length of the run, such as `--epochs 3`."""
        flags = {"--epochs": self.epochs, "--max-steps": self.max_steps}
        return " ".join(f"{flag} {value}" for flag, value in flags.items() if value is not None)

    def applied_to(self, config: RunConfig) -> RunConfig:
        """The run's configuration with the changes of this request."""
        if self.config is not None:
            require_same_kind(self.run_dir, self.config, config)
            config = _with_decisions(self.config, config)
        train = config.train
        epochs, max_steps = self.epochs or train.epochs, self.max_steps or train.max_steps
        return replace(config, train=replace(train, epochs=epochs, max_steps=max_steps))


def _with_decisions(config: RunConfig, run_config: RunConfig) -> RunConfig:
    """The command's settings. A setting that the command leaves open keeps the run's value."""
    sections = {}
    for name in SECTIONS:
        given, decided = getattr(config, name), getattr(run_config, name)
        open_keys = {item.name for item in fields(given) if getattr(given, item.name) == "auto"}
        if name == "data":
            unset = (key for key in ("max_seq_len", "date") if getattr(given, key) is None)
            open_keys.update(unset)
        sections[name] = replace(given, **{key: getattr(decided, key) for key in open_keys})
    return resolve_config(RunConfig(output_dir=run_config.output_dir, **sections))


@dataclass(frozen=True, slots=True)
class ResumePlan:
    """Where and how a run continues. The plan is made before anything is loaded or changed."""

    run_dir: Path
    checkpoint: Path | None  # None: no checkpoint yet, the run starts at step 0
    manifest: CheckpointManifest | None
    skipped: tuple[str, ...]  # damaged newer checkpoints, each with its damage
    abandoned: tuple[str, ...]  # checkpoints of later steps, which will be moved away
    differences: tuple[Difference, ...]
    total_steps: int | None = None  # with the new settings; None: no checkpoint yet
    final_problems: tuple[str, ...] = ()  # why a finished run's final/ is written again
    unknown: tuple[str, ...] = ()  # files in the checkpoint that its manifest does not list
    ended_early: str | None = None  # the reason, if train.patience has ended the run
    sources: tuple[SourceCounts, ...] = ()  # planned and trained; empty: sources have no names
    begins_epoch_again: bool = False  # the weights of a mixture changed in the middle of an epoch

    @property
    def nothing_left(self) -> str | None:
        """The message that no step is left to train; None if steps are left."""
        if self.ended_early is not None:
            return f"nothing is left to train: {self.ended_early}"
        is_trained = self.manifest and self.total_steps and self.manifest.step >= self.total_steps
        return "nothing is left to train" if is_trained else None

    def lines(self, allow: Collection[str] = ()) -> list[str]:
        """The plan as lines of text. A difference in a key of `allow` counts as "changed"."""
        titles = {"free": "changed", "allow": "needs --allow {}", "impossible": "impossible"}
        changes = [f"{titles[d.verdict_with(allow)].format(d.key)}: {d}" for d in self.differences]
        if self.manifest is None or self.checkpoint is None or self.total_steps is None:
            return [f"resume {self.run_dir}: no checkpoint yet, starting at step 0", *changes]
        m = self.manifest
        return [
            f"resume {self.run_dir} from {self.checkpoint.name}: step {m.step} of {m.total_steps}, "
            f"epoch {m.epoch + 1}, step {m.step_in_epoch} of {m.steps_per_epoch} in it, "
            f"{m.examples_seen} examples seen, learning rate {m.learning_rate:.3g}",
            "restores exactly: model, optimizer, progress, order of the data, randomness"
            + ("" if changes else "; nothing has changed since"),
            *([self.nothing_left] if self.nothing_left is not None else []),
            *(f"skipped: {text}" for text in self.skipped),
            *(f"final/ is written again: {text}" for text in self.final_problems),
            *(f"not in the manifest, not read: {name}" for name in self.unknown),
            *(f"moves away: {name}" for name in self.abandoned),
            *(f"source {counts}" for counts in self.sources),
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
    """The checkpoint of `step`, or the newest complete one; None if the run has none yet.

    Raises NoCheckpoint if the checkpoint of `step` does not exist, and CorruptCheckpoint if it is
    damaged.
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
    """Compare the checkpoint with this machine and with `config`, the settings of the resume.

    Raises CheckpointError if a file of the run is missing. Raises ConfigError if the requested
    number of steps is smaller than the number of trained steps, or leaves nothing to train.
    """
    run_config = run.resolved_config()
    if found is None:
        differences = tuple(differences_at_step_0(run_config, config))
        return ResumePlan(run.path, None, None, (), (), differences)
    manifest, store = found.manifest, inputs.train
    goes_on = continued(manifest, config, inputs.num_planned)
    for obstacle in obstacles_in_run(run, found.path, goes_on, config):
        raise obstacle
    names = [path.name for path in named_checkpoints(run.checkpoints)]
    abandoned = tuple(name for name in names if (step_of(name) or 0) > manifest.step)
    if request.length_flags and not abandoned:  # going back always leaves steps
        require_more_steps(
            run.path, goes_on, config, request.length_flags, is_new=config != run_config
        )
    fingerprint, cause = store.manifest.fingerprint, ""
    if fingerprint != manifest.data_fingerprint:
        cause = _cause_of_other_data(manifest, config)
    data = DataHere(store.path, fingerprint, inputs.num_planned, cause)
    cpu = torch.backends.cpu.get_cpu_capability()
    compute = ComputeHere(world_size, torch.get_num_threads(), versions(cpu))
    return ResumePlan(
        run_dir=run.path,
        checkpoint=found.path,
        manifest=manifest,
        skipped=tuple(f"{p.name}: {'; '.join(problems)}" for p, problems in found.skipped),
        abandoned=abandoned,
        differences=(
            *differences_of(manifest, config, data, compute),
            *changed_sets(manifest, inputs.set_fingerprints),
        ),
        total_steps=total_steps(config.train, goes_on),
        final_problems=_final_problems(run, goes_on, config),
        unknown=tuple(unknown_files(found.path, manifest)),
        ended_early=ended_early(goes_on, config),
        sources=tuple(_source_counts(inputs, config, manifest, goes_on)),
        begins_epoch_again=begins_epoch_again(manifest, config),
    )


def _source_counts(
    inputs: Inputs, config: RunConfig, manifest: CheckpointManifest, goes_on: CheckpointManifest
) -> list[SourceCounts]:
    """For each source: how much is trained now, and how much at the end of the run."""
    left = total_steps(config.train, goes_on) - manifest.step
    start = DataPosition(goes_on.epoch, goes_on.step_in_epoch)
    return inputs.source_counts(config.train, left, start, manifest.sources_seen)


def _cause_of_other_data(manifest: CheckpointManifest, config: RunConfig) -> str:
    """The reason if another version of sftctl made other data from the same
    configuration; else "".
    """
    if is_of_older_rules(config, manifest):
        return OLDER_RULES
    names_data = config.data.path is not None or config.data.sources is not None
    is_sample = not names_data and not changed_data_keys(manifest, config)
    return SAMPLE_CHANGED if is_sample else ""


def _final_problems(
    run: RunDir, manifest: CheckpointManifest, config: RunConfig
) -> tuple[str, ...]:
    """The problems of a finished run's `final/`; () if the run is not finished.

    A run that trains more steps removes `final/` anyway.
    """
    is_trained = manifest.step >= total_steps(config.train, manifest)
    if not is_trained and ended_early(manifest, config) is None:
        return ()
    problems = problems_of_final(run.final, manifest)
    choice = final_of(config.train)
    if not problems and is_sealed(run.final) and read_seal(run.final).choice != choice:
        problems = [f"train.final is {choice}, and it was written with another value"]
    return tuple(problems)


def plan_request(
    request: ResumeRequest,
    num_ranks: int,
    stop: StopRequest | None = None,
    verify: Callable[[Store], None] | None = None,
) -> ResumePlan:
    """Make the plan of a resume, without resuming. `verify` hashes the store.

    A signal in `stop` raises Stopped.
    """
    run = RunDir.open(request.run_dir)
    run.require_own_parts()
    config = request.applied_to(run.resolved_config())
    require_metrics(config)
    choose_device(config.train.device)  # or ConfigError
    found = choose_checkpoint(run, request.step)
    resumed = found.manifest if found is not None else None
    inputs = open_inputs(config, ALONE, stop or StopRequest(), resumed)
    require_validation(config, has_validation=bool(inputs.sets))
    if verify is not None:
        verify(inputs.train)
    return plan_resume(run, request, config, found, inputs, num_ranks)


def existing_run(config: RunConfig, announce: Announce | None = None) -> ResumeRequest | None:
    """The request that continues the run at `output_dir`; None if no run is there yet.

    Raises ConfigError if `config` has no `output_dir`.
    """
    if config.output_dir is None:
        raise ConfigError(
            "--auto-resume needs --output-dir: the run to continue",
            hint="add --output-dir runs/NAME, the same one each time",
        )
    if not RunDir(config.output_dir).run_file.is_file():
        return None
    return ResumeRequest(config.output_dir, config=config, announce=announce)
