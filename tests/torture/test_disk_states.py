"""Every state that a power cut may leave, at every disk operation of many sessions."""

from dataclasses import replace

import pytest

from tests.toys.torture.power_cuts import CutResults, cut_everywhere
from tests.toys.torture.scenarios import SCENARIOS, Scenario
from tests.toys.torture.workers import on_all_cores

pytestmark = pytest.mark.torture

NUM_DRAWN = 50


def check(scenario: Scenario) -> CutResults:
    return cut_everywhere(scenario, NUM_DRAWN)


def test_none_of_ten_thousand_states_after_a_power_cut_costs_a_checkpoint(
    capsys: pytest.CaptureFixture[str],
) -> None:
    kinds = ("few", "many", "long")
    first = SCENARIOS[8::-1]  # the others differ in `keep` only
    scenarios = [replace(scenario, tensors=kind) for scenario in first for kind in kinds]
    results = on_all_cores(check, scenarios)
    states = set[bytes]().union(*(result.states for result in results))
    problems = [problem for result in results for problem in result.problems]
    with capsys.disabled():
        where = f"in {len(scenarios)} scenarios"
        print(f"\ndisk states: {len(states)} {where}, violations {len(problems)}")
    assert problems == []
    assert len(states) >= 10_000
