"""Every disk call of many sessions fails, is cut short, or is the process's last."""

import pytest

from tests.toys.torture.points import Tried, try_all_points
from tests.toys.torture.stories import STORIES
from tests.toys.torture.workers import on_all_cores

pytestmark = pytest.mark.torture


def test_no_crash_point_of_ten_thousand_costs_a_checkpoint(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tried: list[Tried] = on_all_cores(try_all_points, reversed(STORIES))
    num_points = sum(it.num_points for it in tried)
    problems = [problem for it in tried for problem in it.problems]
    with capsys.disabled():
        print(f"\ncrash points: {num_points} in {len(STORIES)} stories, violations {len(problems)}")
    assert problems == []
    assert num_points >= 10_000
