"""The sources of a run's mixture, and how their weights change the length of the run.

Loads neither torch nor numpy.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sftctl.checkpoint.layout import CheckpointManifest
from sftctl.config.load import config_to_dict
from sftctl.config.schema import DataConfig, RunConfig, TrainConfig
from sftctl.config.sources import SourceConfig


def sources_with_paths(data: DataConfig) -> tuple[SourceConfig, ...]:
    """The sources that have files or stores of their own; () if the run reads data.path."""
    return tuple(source for source in data.sources or () if source.path is not None)


def of_source(config: RunConfig, source: SourceConfig) -> RunConfig:
    """The configuration of a run on this source alone."""
    return replace(config, data=replace(config.data, path=source.path, sources=None))


def checkpoint_of_source(manifest: CheckpointManifest, name: str) -> CheckpointManifest | None:
    """The manifest as if the run had only this source; None if the run does not have it."""
    fingerprint = manifest.source_fingerprints.get(name)
    path = next((s.get("path") for s in _sources(manifest.config) if s.get("name") == name), None)
    if fingerprint is None or path is None:
        return None
    data = {k: v for k, v in manifest.config["data"].items() if k != "sources"} | {"path": path}
    config = {**manifest.config, "data": data}
    return replace(manifest, data_fingerprint=fingerprint, config=config)


def weights_changed(manifest: CheckpointManifest, config: RunConfig) -> bool:
    """Whether the weight of a source is not the weight in the checkpoint."""
    was, now = _weights(_sources(manifest.config)), _weights(_sources(config_to_dict(config)))
    return any(was.get(name, 1.0) != now.get(name, 1.0) for name in {*was, *now})


def only_weights_differ(then: Any, here: Any) -> bool:
    """Whether two values of data.sources name the same data in the same order."""
    pairs = [
        [(s.get("name"), s["path"]) for s in sources or () if s.get("path") is not None]
        for sources in (then, here)
    ]
    return pairs[0] == pairs[1]


def weights_text(sources: Any) -> str:
    """The weights in a value of data.sources, such as `code=0.3, chat=2`."""
    weights = _weights(sources or [])
    return ", ".join(f"{name}={weight:g}" for name, weight in weights.items()) or "all 1"


def begins_epoch_again(manifest: CheckpointManifest, config: RunConfig) -> bool:
    """Whether a resume starts its epoch again: the weights changed in the middle of the epoch."""
    return manifest.step_in_epoch > 0 and weights_changed(manifest, config)


def continued(
    manifest: CheckpointManifest, config: RunConfig, num_planned: int | None
) -> CheckpointManifest:
    """The manifest with the position in the plan from which a resume continues.

    `num_planned` is the number of examples in an epoch now; None if this is unknown.
    """
    if num_planned is None or not weights_changed(manifest, config):
        return manifest
    per_epoch = -(-num_planned // manifest.global_batch_size)
    return replace(manifest, step_in_epoch=0, steps_per_epoch=per_epoch)


def total_steps(train: TrainConfig, manifest: CheckpointManifest) -> int:
    """The number of steps of the run, if it continues from this checkpoint with these settings.

    If the weights of a mixture have changed, earlier epochs may have had another number of steps.
    """
    before = manifest.step - manifest.step_in_epoch
    return train.total_steps(manifest.steps_per_epoch, before, manifest.epoch)


def _weights(sources: Any) -> dict[str, float]:
    return {str(source.get("name")): source.get("weight", 1.0) for source in sources}


def _sources(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    data = config.get("data")  # the config in a manifest is not checked
    sources = data.get("sources") if isinstance(data, dict) else None
    return [s for s in sources if isinstance(s, dict)] if isinstance(sources, list) else []
