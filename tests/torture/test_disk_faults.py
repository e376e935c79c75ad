"""Every disk call of many sessions fails, writes a part, or ends the process."""

import pytest

from tests.toys.torture.disk_faults import FaultResults, try_all_faults
from tests.toys.torture.scenarios import SCENARIOS
from tests.toys.torture.workers import on_all_cores

pytestmark = pytest.mark.torture


def test_none_of_ten_thousand_disk_faults_costs_a_checkpoint(
    capsys: pytest.CaptureFixture[str],
) -> None:
    results: list[FaultResults] = on_all_cores(try_all_faults, reversed(SCENARIOS))
    num_faults = sum(result.num_faults for result in results)
    problems = [problem for result in results for problem in result.problems]
    with capsys.disabled():
        where = f"in {len(SCENARIOS)} scenarios"
        print(f"\ndisk faults: {num_faults} {where}, violations {len(problems)}")
    assert problems == []
    assert num_faults >= 10_000
