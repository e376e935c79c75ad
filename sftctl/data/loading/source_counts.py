"""How many examples and tokens of each source a run has planned and trained."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sftctl.data.loading.microbatch import Examples
from sftctl.data.mixture import Mixture
from sftctl.data.plan import DataPosition, plan_mixture, steps_per_epoch, times_in_epoch


@dataclass(frozen=True, slots=True)
class SourceCounts:
    """The counts of one source. An example that is trained several times counts several times."""

    name: str
    weight: float
    num_examples: int  # of the source
    planned_examples: int  # in the complete run
    planned_tokens: int
    planned_target_tokens: int
    trained_examples: int = 0
    trained_tokens: int = 0
    trained_target_tokens: int = 0

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.trained_examples:,} of {self.planned_examples:,} examples are "
            f"trained, {self.trained_tokens:,} of {self.planned_tokens:,} tokens, "
            f"{self.trained_target_tokens:,} of {self.planned_target_tokens:,} target tokens"
        )


def source_counts(
    mixture: Mixture,
    store: Examples,
    seed: int,
    global_batch_size: int,
    num_steps: int,
    start: DataPosition = DataPosition(),
    seen: Mapping[str, Mapping[str, int]] | None = None,
) -> list[SourceCounts]:
    """The counts of a run that is at `start` and has `num_steps` steps left.

    `seen` has the counts of the steps before `start`, by source; None: there are no such steps.
    """
    times = _times(mixture, seed, global_batch_size, num_steps, start)
    counts = []
    for source in mixture.sources:
        part = slice(source.start, source.start + source.num_examples)
        weighed = (np.ones_like(times[part]), store.lengths[part], store.target_lengths[part])
        coming = [int((times[part] * values).sum()) for values in weighed]
        before = (seen or {}).get(source.name, {})
        names = ("num_examples", "num_tokens", "num_target_tokens")
        trained = [before.get(name, 0) for name in names]
        planned = [one + other for one, other in zip(coming, trained, strict=True)]
        counts.append(
            SourceCounts(source.name, source.weight, source.num_examples, *planned, *trained)
        )
    return counts


def _times(
    mixture: Mixture, seed: int, global_batch_size: int, num_steps: int, start: DataPosition
) -> npt.NDArray[np.int64]:
    """How often each example will be trained: (N,)."""
    last = mixture.sources[-1]
    times = np.zeros(last.start + last.num_examples, dtype=np.int64)
    per_epoch = steps_per_epoch(mixture.num_planned, global_batch_size)
    epoch, first, left = start.epoch, start.step, num_steps
    while left > 0:
        steps = min(left, per_epoch - first)
        if steps == per_epoch:
            times += times_in_epoch(mixture, seed, epoch)
        else:
            order = plan_mixture(mixture, seed, epoch, global_batch_size).order
            part = order[first * global_batch_size : (first + steps) * global_batch_size]
            np.add.at(times, part, 1)
        epoch, first, left = epoch + 1, 0, left - steps
    return times
