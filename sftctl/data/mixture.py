"""Mixture: the sources of a run, their sizes, and how many examples of each an epoch trains.

This module does not load numpy. `plan.plan_mixture` chooses the examples.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from sftctl.config.schema import DataConfig
from sftctl.data.manifest import StoreManifest
from sftctl.errors import ConfigError


@dataclass(frozen=True, slots=True)
class MixedSource:
    """A source. It has the examples from `start` to `start + num_examples`, exclusive."""

    name: str
    start: int
    num_examples: int
    weight: float = 1.0

    @property
    def num_planned(self) -> int:
        """Examples in each epoch. A repeated example is counted each time."""
        return round(self.weight * self.num_examples)


@dataclass(frozen=True, slots=True)
class Mixture:
    """The sources of a run. Each source begins where the previous source ends."""

    sources: tuple[MixedSource, ...]

    @property
    def num_planned(self) -> int:
        """Examples in an epoch."""
        return sum(source.num_planned for source in self.sources)

    @property
    def names(self) -> list[str]:
        return [source.name for source in self.sources]

    @property
    def weights(self) -> dict[str, float]:
        """Name of a source -> its weight."""
        return {source.name: source.weight for source in self.sources}

    def source_of(self, example: int) -> int:
        """The index of the source that has this example."""
        return bisect_right(self.sources, example, key=lambda source: source.start) - 1


def mixture_of(data: DataConfig, manifests: Sequence[StoreManifest]) -> Mixture | None:
    """The mixture of a run. None if the sources of the run have no names.

    `manifests` has one store for each source with a path, in order. Sources without paths are all
    in a single store. Raises ConfigError for an unknown name, and for an epoch without examples.
    """
    sources = data.sources or ()
    if sources and sources[0].path is not None:
        counts = {s.name: m.num_examples for s, m in zip(sources, manifests, strict=True)}
    else:
        counts = manifests[0].examples_by_source()
    if not counts and not sources:
        return None
    for source in sources:
        if source.name not in counts:
            names = f"it has {', '.join(counts)}" if counts else "its sources have no names"
            raise ConfigError(
                f"data.sources: {data.path} has no source {source.name}: {names}",
                hint="`prepare-data NAME=PATH` gives a source of a store its name",
            )
    weights = {source.name: source.weight for source in sources}
    mixed, start = [], 0
    for name, count in counts.items():
        mixed.append(MixedSource(name, start, count, weights.get(name, 1.0)))
        start += count
    mixture = Mixture(tuple(mixed))
    if not mixture.num_planned:
        shown = ", ".join(f"{name}={weight:g}" for name, weight in mixture.weights.items())
        raise ConfigError(
            f"data.sources: an epoch would have no example with the weights {shown}",
            hint="raise a weight",
        )
    return mixture
