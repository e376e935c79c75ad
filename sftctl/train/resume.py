"""ResumePlan: what a resume restores, what has changed since, and what it refuses."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch

from sftctl.checkpoint.directory import named_checkpoints, newest_good
from sftctl.checkpoint.layout import CheckpointManifest, read_manifest, step_of
from sftctl.config.load import config_from_dict, config_to_dict
from sftctl.config.schema import SECTIONS, RunConfig
from sftctl.data.plan import steps_per_epoch
from sftctl.environment import usable_cores
from sftctl.errors import ConfigError, IncompatibleCheckpoint, NoCheckpoint
from sftctl.tracking.runlog import last_saved_step, require_metrics
from sftctl.train.inputs import Inputs, open_inputs, resolve_config
from sftctl.train.rundir import RunDir
from sftctl.train.schedule import get_lr
from sftctl.train.stop import StopRequest
from sftctl.train.versions import versions
from sftctl.world import ALONE

Verdict = Literal["free", "allow", "impossible"]

DATA = "data"
"""The `--allow` key of other data than the checkpoint was trained on."""

ROUNDED = "the same examples in every step, sums rounded otherwise"


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
            raise ConfigError(f"--allow {key}: no such key; there are {', '.join(known)}")

    def applied_to(self, config: RunConfig) -> RunConfig:
        """The run's configuration with what this request changes."""
        if self.epochs is None:
            return config
        return replace(config, train=replace(config.train, epochs=self.epochs))


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that is not as it was when the checkpoint was made."""

    key: str
    was: Any
    now: Any
    verdict: Verdict
    effect: str  # what it means for the run

    def __str__(self) -> str:
        return f"{self.key}: {self.was} -> {self.now}: {self.effect}"

    def verdict_with(self, allow: Collection[str]) -> Verdict:
        """What is asked for may be allowed; what is impossible stays so."""
        return "free" if self.verdict == "allow" and self.key in allow else self.verdict


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
    path, bad = newest_good(run.checkpoints, step)
    manifest = read_manifest(path)
    require_metrics(run.path, manifest.metrics_bytes)
    later = [p.name for p in named if _step(p) > manifest.step]
    return ResumePlan(
        run_dir=run.path,
        checkpoint=path,
        manifest=manifest,
        skipped=tuple(f"{p.name}: {'; '.join(problems)}" for p, problems in bad),
        abandoned=tuple(later),
        differences=tuple(_differences(manifest, config, inputs, world_size)),
    )


def plan_request(config: RunConfig, request: ResumeRequest, num_ranks: int) -> ResumePlan:
    """The plan of a resume that is not carried out."""
    run, config = RunDir.open(request.run_dir), request.applied_to(config)
    inputs = open_inputs(config, ALONE, StopRequest())
    return plan_resume(run, config, inputs, num_ranks, request.step)


def existing_run(config: RunConfig, announce: Announce | None = None) -> ResumeRequest | None:
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
    return ResumeRequest(config.output_dir, announce=announce)


def threads_for(manifest: CheckpointManifest, config: RunConfig, world_size: int) -> int:
    """As many threads as before, where possible: how sums are rounded depends on their number."""
    matters = manifest.world_size == world_size or config.train.reduction == "exact"
    possible = manifest.num_threads <= usable_cores()
    return manifest.num_threads if matters and possible else torch.get_num_threads()


def allowable_keys() -> Iterator[str]:
    """What `--allow` takes: changes that make another run, and may be meant."""
    yield DATA
    yield "train.dtype"
    yield from (f"optim.{item.name}" for item in fields(SECTIONS["optim"]))


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


def _differences(
    manifest: CheckpointManifest, config: RunConfig, inputs: Inputs, world_size: int
) -> Iterator[Difference]:
    per_epoch = steps_per_epoch(len(inputs.train), manifest.global_batch_size)
    yield from _other_data(manifest, config, inputs, per_epoch)
    yield from _other_processes(manifest, config, world_size)
    was, now = manifest.config, config_to_dict(config)
    for section, cls in SECTIONS.items():
        for item in fields(cls):
            name = item.name
            then, here = was[section].get(name), now[section].get(name)
            if then is None and item.default is not None:
                continue  # a key that did not exist yet
            if then != here and (verdict := _judged(f"{section}.{name}", manifest, config)):
                effect = _effect(f"{section}.{name}", verdict, manifest, config)
                yield Difference(f"{section}.{name}", then, here, verdict, effect)
    for name, version in versions().items():
        if manifest.versions.get(name) != version:
            was_version = manifest.versions.get(name)
            yield Difference(name, was_version, version, "free", "bits may differ")


def _other_data(
    manifest: CheckpointManifest, config: RunConfig, inputs: Inputs, per_epoch: int
) -> Iterator[Difference]:
    was, now = manifest.data_fingerprint, inputs.train.manifest.fingerprint
    if was == now:
        return
    then, here = manifest.config["data"], config_to_dict(config)["data"]
    edited = [
        f"data.{key} {then.get(key)} -> {here.get(key)}"
        for key in sorted({*then, *here} - {*_LOADER_KEYS})
        if then.get(key) != here.get(key)
    ]
    cause = f" ({', '.join(edited)})" if edited else ""
    if per_epoch != manifest.steps_per_epoch:
        effect = f"{per_epoch} steps an epoch, not {manifest.steps_per_epoch}: no place to go on at"
        yield Difference(DATA, was[:12], now[:12], "impossible", effect + cause)
    else:
        effect = f"{inputs.train.path} is not what it was trained on"
        yield Difference(DATA, was[:12], now[:12], "allow", effect + cause)


def _other_processes(
    manifest: CheckpointManifest, config: RunConfig, world_size: int
) -> Iterator[Difference]:
    exact, threads = config.train.reduction == "exact", threads_for(manifest, config, world_size)
    if manifest.world_size != world_size:
        effect = "the same steps, to the bit" if exact else ROUNDED
        yield Difference("ranks", manifest.world_size, world_size, "free", effect)
    if manifest.num_threads != threads and (exact or manifest.world_size == world_size):
        yield Difference("threads", manifest.num_threads, threads, "free", "sums rounded otherwise")


def _judged(key: str, manifest: CheckpointManifest, config: RunConfig) -> Verdict | None:
    """What a changed key means; None where it says nothing about a run that goes on."""
    section, _, name = key.partition(".")
    if key in ("train.batch_size", "train.accumulation_steps"):
        same = config.train.global_batch_size == manifest.global_batch_size
        return "free" if same else "impossible"
    if key == "train.seed" or section == "model":
        return "impossible"
    if section == "data" and name not in _LOADER_KEYS:
        return None  # the data's fingerprint decides
    return "allow" if key in allowable_keys() else "free"


_ROUNDING_KEYS = ("micro_batch_tokens", "strategy", "reduction", "device", "compile")
_OF_THE_LEARNING_RATE = (
    "train.epochs",
    "train.max_steps",
    "optim.learning_rate",
    "optim.schedule",
    "optim.warmup_steps",
    "optim.min_lr_ratio",
)
_LOADER_KEYS = ("num_workers", "pin_memory", "prefetch_factor", "persistent_workers")


def _effect(key: str, verdict: Verdict, manifest: CheckpointManifest, config: RunConfig) -> str:
    if key in _OF_THE_LEARNING_RATE:
        return _learning_rate_after(manifest, config)
    if key.startswith("optim."):
        return "other updates from here on"
    if key.removeprefix("train.") in _ROUNDING_KEYS:
        return ROUNDED
    if key == "train.dtype":
        return "sums rounded otherwise; a scaler starts anew"
    if key.startswith("model."):
        return "a run keeps the model and tokenizer that it began with"
    if verdict == "impossible":
        return "the steps would hold other examples"
    return "the same steps"


def _learning_rate_after(manifest: CheckpointManifest, config: RunConfig) -> str:
    """What the next step's learning rate was to be, and is now."""
    total = config.train.total_steps(manifest.steps_per_epoch)
    if manifest.step > total:
        asked = f"train.epochs: {config.train.epochs} epochs are {total} steps"
        if config.train.max_steps == total:
            asked = f"train.max_steps: {total} steps"
        raise ConfigError(
            f"{asked}, and the checkpoint is of step {manifest.step}",
            hint="a run can only grow; `--step N` goes back",
        )
    step = manifest.step + 1
    was = get_lr(step, manifest.total_steps, config_from_dict(manifest.config).optim)
    now = get_lr(step, total, config.optim)
    return f"{total} steps in all; learning rate of step {step} {was:.3g} -> {now:.3g}"
