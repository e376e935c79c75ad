"""The measurements of one loader setting, and how rounds and ranks are combined."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sftctl.data.loading.loader import LoaderSettings

_SUMMED_OVER_RANKS = {
    "batches_per_s",
    "samples_per_s",
    "tokens_per_s",
    "rss_bytes",
    "pss_bytes",
    "shm_bytes",
    "open_files",
}
_WORST_OF_RANKS = {"first_batch_s", "wait_p50_s", "wait_p99_s", "step_wait_s"}
_MEASURED = (*sorted(_SUMMED_OVER_RANKS), *sorted(_WORST_OF_RANKS))


@dataclass(frozen=True, slots=True)
class LoaderResult:
    """The measurements of one loader setting: one round, or the medians of several rounds."""

    num_workers: int
    pin_memory: bool
    prefetch_factor: int | None  # None without workers
    persistent_workers: bool
    batches_per_s: float | None = None
    samples_per_s: float | None = None
    tokens_per_s: float | None = None
    first_batch_s: float | None = None
    wait_p50_s: float | None = None
    wait_p99_s: float | None = None
    # The next four values count all ranks and their loader processes.
    rss_bytes: int | None = None  # shared pages are counted in each process
    pss_bytes: int | None = None  # shared pages are counted once
    shm_bytes: int | None = None  # in /dev/shm
    open_files: int | None = None
    step_wait_s: float | None = None  # wait for a batch, with the work of a step before each batch
    spread_ratio: float | None = None  # (largest - smallest) / median tokens_per_s of the rounds
    error: str | None = None  # why the setting has no measurements

    @classmethod
    def of(cls, settings: "LoaderSettings", error: str | None = None) -> "LoaderResult":
        """A setting without measurements. `error`: why it can't be measured; None: not measured
        yet."""
        return cls(
            num_workers=settings.num_workers,
            pin_memory=settings.pin_memory,
            prefetch_factor=settings.prefetch_factor if settings.num_workers > 0 else None,
            persistent_workers=settings.persistent_workers,
            error=error,
        )


def over_ranks(results: Sequence[LoaderResult]) -> LoaderResult:
    """Combine the results of all ranks: sums of rates and memory, and the longest wait."""
    for result in results:
        if result.error is not None:
            return result
    values = {name: [getattr(result, name) for result in results] for name in _MEASURED}
    known: dict[str, Any] = {name: each for name, each in values.items() if None not in each}
    return replace(
        results[0],
        **{
            name: sum(each) if name in _SUMMED_OVER_RANKS else max(each)
            for name, each in known.items()
        },
    )


def over_rounds(settings: "LoaderSettings", rounds: Sequence[LoaderResult]) -> LoaderResult:
    """The medians over rounds. No measurements if a round failed, or if there is no round yet."""
    if not rounds:
        return LoaderResult.of(settings)
    if rounds[-1].error:
        return rounds[-1]
    names = [name for name in _MEASURED if getattr(rounds[0], name) is not None]
    medians = {name: median(getattr(result, name) for result in rounds) for name in names}
    speeds = [result.tokens_per_s or 0.0 for result in rounds]
    spread_ratio = (max(speeds) - min(speeds)) / median(speeds)
    return replace(rounds[0], **medians, spread_ratio=spread_ratio)
