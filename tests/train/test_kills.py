"""A few of the kills of tests/torture/test_crash_loop.py, in the ordinary suite."""

from pathlib import Path

from tests.torture.crash_loop import Loop, crash_loop


def test_a_run_that_is_killed_and_resumed_ends_as_the_one_that_never_was(tmp_path: Path) -> None:
    tally = crash_loop(tmp_path, Loop(num_kills=6, num_workers=1), seed=4)
    assert tally.kills == 6
    assert tally.inside_a_save >= 1
