"""What has changed since a checkpoint was saved, and what each change means for a resume.

Loads neither torch nor numpy, because inspect-ckpt needs this too.
"""

import platform
from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from sftctl import __version__
from sftctl.checkpoint.layout import CheckpointManifest
from sftctl.config.load import config_from_dict, config_to_dict
from sftctl.config.schedule import get_lr
from sftctl.config.schema import SECTIONS, RunConfig
from sftctl.environment import usable_cores
from sftctl.runs.effects import (
    ADAPTER_KEYS,
    DATA,
    LEARNING_RATE_KEYS,
    ROUNDED,
    ROUNDING_KEYS,
    SOURCES,
    allowable_keys,
    effect_of,
    is_impossible,
)
from sftctl.runs.mixtures import (
    begins_epoch_again,
    continued,
    only_weights_differ,
    total_steps,
    weights_changed,
    weights_text,
)
from sftctl.words import counted

Verdict = Literal["free", "allow", "impossible"]

OLDER_RULES = "the same files, prepared by older mask rules; that store is no longer in the cache"
"""The cause if the data differ only because this version has other mask rules."""
SAMPLE_CHANGED = (
    "the bundled sample changed with this version, and the run's own store is no longer in the "
    "cache"
)

_PACKAGES = ("torch", "transformers", "tokenizers", "numpy")
_BASE_DTYPE, _ALPHA = "adapter.base_dtype", "adapter.alpha"
_LOADER_KEYS = ("num_workers", "pin_memory", "prefetch_factor", "persistent_workers")


@dataclass(frozen=True, slots=True)
class DataHere:
    """The training data that a resume would read now."""

    path: Path
    fingerprint: str
    num_planned: int  # examples in an epoch
    cause: str = ""  # why the fingerprint is not the checkpoint's, if this is known


@dataclass(frozen=True, slots=True)
class ComputeHere:
    """The machine and the versions with which a resume would compute now."""

    world_size: int
    num_threads: int  # torch's default, per rank
    versions: dict[str, str]


def versions(cpu_capability: str) -> dict[str, str]:
    """The versions of everything that can change the bits of a run.

    `cpu_capability` is torch's name for the CPU's vector instructions.
    """
    from importlib.metadata import version

    packages = {name: version(name) for name in _PACKAGES}
    own = {"sftctl": __version__, "python": platform.python_version()}
    return {**own, **packages, "cpu": cpu_capability}


@dataclass(frozen=True, slots=True)
class Difference:
    """One change since the checkpoint was saved."""

    key: str
    was: Any
    now: Any
    verdict: Verdict
    effect: str  # what the change does to the run from now on

    def __str__(self) -> str:
        return f"{self.key}: {self.was} -> {self.now}: {self.effect}"

    def verdict_with(self, allow: Collection[str]) -> Verdict:
        """The verdict if the keys in `allow` may differ. `impossible` does not change."""
        return "free" if self.verdict == "allow" and self.key in allow else self.verdict


def differences_of(
    manifest: CheckpointManifest,
    config: RunConfig,
    data: DataHere | None,
    compute: ComputeHere | None = None,
) -> Iterator[Difference]:
    """Every change since the checkpoint was saved. `data` is None if the data is not known yet.

    `compute` is None if the resume computes nothing. A change of the machine or of versions is
    always allowed.
    """
    if data is not None:
        yield from _data_differences(manifest, config, data)
    if compute is not None:
        yield from _process_differences(manifest, config, compute)
    was, now = manifest.config, config_to_dict(config)
    goes_on = continued(manifest, config, data.num_planned if data is not None else None)
    for section in SECTIONS:
        for name, then, here in _changed(section, was, now):
            key = f"{section}.{name}"
            if key == SOURCES:
                then, here = weights_text(then), weights_text(here)
            if verdict := _verdict(key, manifest, config):
                yield Difference(key, then, here, verdict, _effect(key, verdict, goes_on, config))
    for name, version in (compute.versions if compute is not None else {}).items():
        if (then := manifest.versions.get(name)) != version:
            yield Difference(name, then, version, "free", _effect_of_version(name, then, config))


def _effect_of_version(name: str, then: str | None, config: RunConfig) -> str:
    """What another version of a package does. Before 0.2, sftctl trained rows with padding."""
    if name != "sftctl" or then is None or not then.startswith("0.1."):
        return "bits may differ"
    was_autocast = "; bfloat16 was autocast before" if config.train.dtype == "bfloat16" else ""
    return ROUNDED + was_autocast


def differences_at_step_0(began: RunConfig, config: RunConfig) -> Iterator[Difference]:
    """The changes to a run without a checkpoint. Its model folder and tokenizer already exist."""
    was, now = config_to_dict(began), config_to_dict(config)
    effect = "the run directory is for the old value; a new run needs another one"
    for section in ("model", "data", "adapter"):
        for name, then, here in _changed(section, was, now):
            key = f"{section}.{name}"
            if key == SOURCES and only_weights_differ(then, here):
                texts = weights_text(then), weights_text(here)
                yield Difference(key, *texts, "free", "no step was trained yet")
            elif name not in _LOADER_KEYS:
                yield Difference(key, then, here, "impossible", effect)


def _changed(
    section: str, was: dict[str, Any], now: dict[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """(name, old value, new value) of the keys in a section that differ. None means unset."""
    before = was.get(section)
    before = before if isinstance(before, dict) else {}  # the config in a manifest is not checked
    for item in fields(SECTIONS[section]):
        then, here = before.get(item.name), now[section].get(item.name)
        is_new = then is None and item.default is not None  # a key that did not exist then
        if then != here and not is_new:
            yield item.name, then, here


def _data_differences(
    manifest: CheckpointManifest, config: RunConfig, data: DataHere
) -> Iterator[Difference]:
    was, now = manifest.data_fingerprint, data.fingerprint
    if was == now:
        return
    edited = changed_data_keys(manifest, config)
    causes = [*edited, *([data.cause] if data.cause else [])]
    cause = f" ({', '.join(causes)})" if causes else ""
    per_epoch = -(-data.num_planned // manifest.global_batch_size)
    if per_epoch != manifest.steps_per_epoch and not weights_changed(manifest, config):
        steps = counted(per_epoch, "step")
        effect = f"{steps} per epoch, not {manifest.steps_per_epoch}: no step to continue from"
        yield Difference(DATA, was[:12], now[:12], "impossible", effect + cause)
    else:
        effect = f"{data.path} is not what it was trained on"
        yield Difference(DATA, was[:12], now[:12], "allow", effect + cause)


def changed_data_keys(manifest: CheckpointManifest, config: RunConfig) -> list[str]:
    """The changes to keys that decide the content of the data, as text."""
    changes = _changed("data", manifest.config, config_to_dict(config))
    return sorted(
        f"data.{name} {weights_text(then)} -> {weights_text(here)}"
        if name == "sources"
        else f"data.{name} {then} -> {here}"
        for name, then, here in changes
        if name not in _LOADER_KEYS and not (name == "sources" and only_weights_differ(then, here))
    )


def _process_differences(
    manifest: CheckpointManifest, config: RunConfig, compute: ComputeHere
) -> Iterator[Difference]:
    exact, ranks = config.train.reduction == "exact", compute.world_size
    threads = threads_for(manifest, config, ranks, compute.num_threads)
    if manifest.world_size != ranks:
        effect = "the same steps, to the bit" if exact else ROUNDED
        yield Difference("ranks", manifest.world_size, ranks, "free", effect)
    if manifest.num_threads != threads and (exact or manifest.world_size == ranks):
        yield Difference(
            "threads", manifest.num_threads, threads, "free", "sums rounded differently"
        )


def _verdict(key: str, manifest: CheckpointManifest, config: RunConfig) -> Verdict | None:
    """What a changed key means for a resume; None if the key by itself means nothing."""
    section, _, name = key.partition(".")
    if key in ("train.batch_size", "train.accumulation_steps"):
        same = config.train.global_batch_size == manifest.global_batch_size
        return "free" if same else "impossible"
    if key == "model.name" and manifest.base is not None:
        return "free"  # the hashes of its files decide
    if key == _BASE_DTYPE and _held_in(
        manifest.config["adapter"]["base_dtype"], manifest.dtype
    ) == _held_in(config.adapter.base_dtype, config.train.dtype):
        return "free"
    if is_impossible(key) or (key == _ALPHA and config.adapter.alpha == 0):
        return "impossible"
    if key == SOURCES and weights_changed(manifest, config):
        return "allow" if begins_epoch_again(manifest, config) else "free"
    if section == "data" and name not in _LOADER_KEYS:
        return None  # the data's fingerprint decides
    return "allow" if key in allowable_keys() else "free"


def _held_in(asked: str, computes: str) -> str:
    """The dtype of an adapter's frozen base. With auto, it follows the dtype of the computation."""
    return asked if asked != "auto" else "bfloat16" if computes == "bfloat16" else "float32"


def _effect(key: str, verdict: Verdict, manifest: CheckpointManifest, config: RunConfig) -> str:
    if key == SOURCES:
        steps = f"{counted(manifest.steps_per_epoch, 'step')} per epoch"
        when = "begins again with" if verdict == "allow" else "and later ones have"
        effect = f"epoch {manifest.epoch + 1} {when} the new weights, {steps}"
        if total_steps(config.train, manifest) == manifest.total_steps:
            return effect
        return f"{effect}, {_learning_rate_after(manifest, config)}"
    if key in LEARNING_RATE_KEYS:
        return _learning_rate_after(manifest, config)
    if key == _ALPHA and verdict == "impossible":
        return "the adapter would add nothing to the model"
    if key.startswith("optim.") or key in ADAPTER_KEYS:
        return "other updates from here on"
    if key.removeprefix("train.") in ROUNDING_KEYS:
        return ROUNDED
    if key == "model.name" and verdict == "free":
        return "the same base, by the hashes of its files"
    if key == _BASE_DTYPE and verdict == "free":
        return "the same type"
    return effect_of(key, is_possible=verdict != "impossible")


def _learning_rate_after(manifest: CheckpointManifest, config: RunConfig) -> str:
    """The number of steps, and the learning rate of the next step before and after the change."""
    total = total_steps(config.train, manifest)
    if manifest.step >= total:
        return f"{counted(total, 'step')} in all: nothing is left to train"
    step = manifest.step + 1
    was = get_lr(step, manifest.total_steps, config_from_dict(manifest.config).optim)
    now = get_lr(step, total, config.optim)
    return f"{counted(total, 'step')} in all; learning rate of step {step} {was:.3g} -> {now:.3g}"


def threads_for(
    manifest: CheckpointManifest, config: RunConfig, world_size: int, num_threads: int
) -> int:
    """The threads per rank for a resume. `num_threads` is torch's default.

    The number of threads decides how sums are rounded. So the checkpoint's number is used if it
    affects the bits and there are enough cores.
    """
    matters = manifest.world_size == world_size or config.train.reduction == "exact"
    possible = manifest.num_threads <= usable_cores()
    return manifest.num_threads if matters and possible else num_threads
