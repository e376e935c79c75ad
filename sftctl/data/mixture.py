"""Mixture: the sources of a run, how many examples each has, and how many an epoch trains.

Does not load numpy. `plan.plan_mixture` chooses the examples.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from sftctl.config.schema import DataConfig
from sftctl.data.manifest import StoreManifest
from sftctl.errors import ConfigError


@dataclass(frozen=True, slots=True)
class MixedSource:
    """A source: the examples of the run's data from `start` to `start + num_examples`."""

    name: str
    start: int
    num_examples: int
    weight: float = 1.0

    @property
    def num_planned(self) -> int:
        """Examples in an epoch, including repeated examples; the same number in every epoch."""
        return round(self.weight * self.num_examples)


@dataclass(frozen=True, slots=True)
class Mixture:
    """The sources of a run, in the order of its examples, without gaps."""

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
        """Each source's weight, by name."""
        return {source.name: source.weight for source in self.sources}

    def source_of(self, example: int) -> int:
        """The number of an example's source."""
        return bisect_right(self.sources, example, key=lambda source: source.start) - 1


def mixture_of(data: DataConfig, manifests: Sequence[StoreManifest]) -> Mixture | None:
    """The mixture that a run with these stores trains. None if the run's sources have no names.

    There is one store for each source with a path, in order, or a single store. ConfigError for a
    name that no source has, and if an epoch would have no example.
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
                hint="prepare-data NAME=PATH names a source of a store",
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
