"""Digests that were seen before are counted, in little memory."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sftctl.data.prepare.duplicates import SeenDigests

DIGESTS = st.integers(0, 2**64 - 1) | st.integers(0, 9)


@given(st.lists(st.lists(DIGESTS, max_size=30), max_size=12))
def test_digests_are_counted_as_a_set_counts_them(batches: list[list[int]]) -> None:
    seen = SeenDigests()
    expected: set[int] = set()
    for batch in batches:
        num_seen = 0
        for digest in batch:
            num_seen += digest in expected
            expected.add(digest)
        assert seen.add(np.array(batch, dtype=np.uint64)) == num_seen
    for digest in {*expected, 3, 2**63}:
        assert (digest in seen) == (digest in expected)


def test_the_runs_are_few() -> None:
    seen = SeenDigests()
    for batch in range(500):
        seen.add(np.arange(batch * 20, batch * 20 + 20, dtype=np.uint64))
    assert len(seen._runs) < 12
    assert sum(len(run) for run in seen._runs) == 10_000
