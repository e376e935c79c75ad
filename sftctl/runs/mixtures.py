"""The sources of a run's mixture, one by one, and how their weights decide the run's length.

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
    """The sources with their own files or stores; () if the run reads data.path."""
    return tuple(source for source in data.sources or () if source.path is not None)


def of_source(config: RunConfig, source: SourceConfig) -> RunConfig:
    """The configuration of a run on one source alone."""
    return replace(config, data=replace(config.data, path=source.path, sources=None))


def checkpoint_of_source(manifest: CheckpointManifest, name: str) -> CheckpointManifest | None:
    """The checkpoint's manifest as if its run had only this source; None: it lacks this source."""
    fingerprint = manifest.source_fingerprints.get(name)
    path = next((s.get("path") for s in _sources(manifest.config) if s.get("name") == name), None)
    if fingerprint is None or path is None:
        return None
    data = {k: v for k, v in manifest.config["data"].items() if k != "sources"} | {"path": path}
    config = {**manifest.config, "data": data}
    return replace(manifest, data_fingerprint=fingerprint, config=config)


def weights_changed(manifest: CheckpointManifest, config: RunConfig) -> bool:
    """Whether the weight of a source differs from its weight in the checkpoint."""
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
    """`code=0.3, chat=2`: the weights in a value of data.sources."""
    weights = _weights(sources or [])
    return ", ".join(f"{name}={weight:g}" for name, weight in weights.items()) or "all 1"


def begins_epoch_again(manifest: CheckpointManifest, config: RunConfig) -> bool:
    """Whether a resume starts its epoch again, because the weights changed in the middle of it."""
    return manifest.step_in_epoch > 0 and weights_changed(manifest, config)


def continued(
    manifest: CheckpointManifest, config: RunConfig, num_planned: int | None
) -> CheckpointManifest:
    """The checkpoint at the position in the plan from which a resume continues.

    `num_planned` examples make an epoch now; None: that is not known.
    """
    if num_planned is None or not weights_changed(manifest, config):
        return manifest
    per_epoch = -(-num_planned // manifest.global_batch_size)
    return replace(manifest, step_in_epoch=0, steps_per_epoch=per_epoch)


def total_steps(train: TrainConfig, manifest: CheckpointManifest) -> int:
    """Steps of the run that continues from this checkpoint with these settings.

    Earlier epochs can have had other numbers of steps, if the weights of a mixture have changed.
    """
    before = manifest.step - manifest.step_in_epoch
    return train.total_steps(manifest.steps_per_epoch, before, manifest.epoch)


def _weights(sources: Any) -> dict[str, float]:
    return {str(source.get("name")): source.get("weight", 1.0) for source in sources}


def _sources(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    data = config.get("data")  # a manifest's config is not checked
    sources = data.get("sources") if isinstance(data, dict) else None
    return [s for s in sources if isinstance(s, dict)] if isinstance(sources, list) else []
