"""Two hundred kill -9, many during a save: every run ends in the same bits."""

from pathlib import Path

import pytest

from tests.toys.torture.crash_loop import Loop, crash_loop

pytestmark = pytest.mark.torture

LOOPS = {
    "one rank": Loop(num_kills=110),
    "loader processes": Loop(num_kills=50, num_workers=2),
    "two ranks": Loop(num_kills=30, num_ranks=2),
    "an adapter on two ranks, then on one": Loop(num_kills=10, num_ranks=2, lora=True),
}


@pytest.mark.parametrize("name", LOOPS)
def test_a_run_killed_many_times_ends_as_one_that_was_never_killed(
    tmp_path: Path, name: str
) -> None:
    loop = LOOPS[name]
    tally = crash_loop(tmp_path, loop, seed=1)
    print(f"\n{name}: {tally}")
    assert tally.kills == loop.num_kills
    assert tally.inside_a_save >= loop.num_kills // 4 - 1  # of ten kills, one is enough
    assert tally.of_one_process >= loop.num_kills * 0.1


def test_there_are_two_hundred_kills() -> None:
    assert sum(loop.num_kills for loop in LOOPS.values()) == 200
