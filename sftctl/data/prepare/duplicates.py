"""Finds duplicate rows, with 8 bytes of memory for each row."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Digests = npt.NDArray[np.uint64]  # (N,) of Conversation.digest


class SeenDigests:
    """A set of digests, in sorted arrays. Each array has at least twice the size of the next."""

    def __init__(self, digests: Iterable[int] = ()) -> None:
        self._runs: list[Digests] = []
        self.add(np.fromiter(digests, dtype=np.uint64))

    def __contains__(self, digest: int) -> bool:
        return bool(self._known(np.array([digest], dtype=np.uint64))[0])

    def add(self, digests: Digests) -> int:
        """Add digests. Returns how many of them are duplicates, of earlier or of new digests."""
        fresh = np.unique(digests)
        fresh = fresh[~self._known(fresh)]
        num_seen = len(digests) - len(fresh)
        while self._runs and len(self._runs[-1]) < 2 * len(fresh):
            fresh = np.sort(np.concatenate([self._runs.pop(), fresh]))
        if len(fresh):
            self._runs.append(fresh)
        return num_seen

    def _known(self, digests: Digests) -> npt.NDArray[np.bool_]:
        known = np.zeros(len(digests), dtype=bool)
        for run in self._runs:
            places = np.searchsorted(run, digests)
            known |= run[np.minimum(places, len(run) - 1)] == digests
        return known
