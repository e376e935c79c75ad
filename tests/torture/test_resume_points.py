"""A resume from every kind of step, for all loader processes, accumulations, ranks, dtypes."""

import itertools
from pathlib import Path

import pytest

from tests.toys.torture.resume_points import Setting, assert_every_resume_ends_alike

pytestmark = pytest.mark.torture

DTYPES = ("float32", "bfloat16", "float16")
SETTINGS = [
    *itertools.starmap(Setting, itertools.product((0, 2), (1, 3), (1, 2), DTYPES)),
    Setting(0, 1, 1, "bfloat16", lora=True),
    Setting(2, 3, 2, "float32", lora=True),
]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_a_run_resumed_at_any_step_is_the_run_that_never_stopped(
    tmp_path: Path, setting: Setting
) -> None:
    assert_every_resume_ends_alike(tmp_path, setting)
