"""What is not as it was when a checkpoint was made, and what that means for a run that goes on."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch

from sftctl.checkpoint.layout import CheckpointManifest
from sftctl.config.load import config_from_dict, config_to_dict
from sftctl.config.schema import SECTIONS, RunConfig
from sftctl.data.plan import steps_per_epoch
from sftctl.environment import usable_cores
from sftctl.errors import ConfigError
from sftctl.train.preflight.inputs import Inputs
from sftctl.config.schedule import get_lr
from sftctl.runs.versions import versions
from sftctl.words import counted

Verdict = Literal["free", "allow", "impossible"]

DATA = "data"
"""The `--allow` key of other data than the checkpoint was trained on."""

ROUNDED = "the same examples in every step, sums rounded otherwise"


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


def differences_of(
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
        steps = counted(per_epoch, "step")
        effect = f"{steps} an epoch, not {manifest.steps_per_epoch}: no place to go on at"
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
        steps = counted(total, "step")
        asked = f"train.epochs: {counted(config.train.epochs, 'epoch')}, {steps}"
        if config.train.max_steps == total:
            asked = f"train.max_steps: {steps}"
        raise ConfigError(
            f"{asked}, and the checkpoint is of step {manifest.step}",
            hint="a run can only grow; `--step N` goes back",
        )
    step = manifest.step + 1
    was = get_lr(step, manifest.total_steps, config_from_dict(manifest.config).optim)
    now = get_lr(step, total, config.optim)
    return f"{counted(total, 'step')} in all; learning rate of step {step} {was:.3g} -> {now:.3g}"


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
