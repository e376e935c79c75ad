"""Two hundred kill -9, a good part of them inside a save, and every run ends to the last bit."""

from pathlib import Path

import pytest

from tests.toys.torture.crash_loop import Loop, crash_loop

pytestmark = pytest.mark.torture

LOOPS = {
    "one rank": Loop(num_kills=120),
    "loader processes": Loop(num_kills=50, num_workers=2),
    "two ranks": Loop(num_kills=30, num_ranks=2),
}


@pytest.mark.parametrize("name", LOOPS)
def test_a_run_killed_again_and_again_ends_as_the_one_that_never_was(
    tmp_path: Path, name: str
) -> None:
    loop = LOOPS[name]
    tally = crash_loop(tmp_path, loop, seed=1)
    print(f"\n{name}: {tally}")
    assert tally.kills == loop.num_kills
    assert tally.inside_a_save >= loop.num_kills * 0.25
    assert tally.of_one_process >= loop.num_kills * 0.1


def test_they_are_two_hundred_kills() -> None:
    assert sum(loop.num_kills for loop in LOOPS.values()) == 200
