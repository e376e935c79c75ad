"""A fifth of tests/torture/test_resume_points.py, with every value of each setting."""

from pathlib import Path

import pytest

from tests.toys.torture.resume_points import Setting, assert_every_resume_ends_alike

SETTINGS = [
    Setting(num_workers=0, accumulation_steps=1, num_ranks=1, dtype="float16"),
    Setting(num_workers=2, accumulation_steps=3, num_ranks=1, dtype="float32"),
    Setting(num_workers=0, accumulation_steps=3, num_ranks=1, dtype="bfloat16"),
    Setting(num_workers=2, accumulation_steps=1, num_ranks=2, dtype="bfloat16"),
    Setting(num_workers=0, accumulation_steps=3, num_ranks=2, dtype="float16"),
]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_a_run_resumed_at_any_step_is_the_run_that_never_stopped(
    tmp_path: Path, setting: Setting
) -> None:
    assert_every_resume_ends_alike(tmp_path, setting)
