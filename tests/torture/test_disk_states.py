"""What a power cut may leave, at every operation of many sessions."""

from dataclasses import replace

import pytest

from tests.toys.torture.cuts import Examined, cut_everywhere
from tests.toys.torture.stories import STORIES, Story
from tests.toys.torture.workers import on_all_cores

pytestmark = pytest.mark.torture

NUM_DRAWN = 50


def examine(story: Story) -> Examined:
    return cut_everywhere(story, NUM_DRAWN)


def test_no_state_of_ten_thousand_after_a_power_cut_costs_a_checkpoint(
    capsys: pytest.CaptureFixture[str],
) -> None:
    kinds = ("few", "many", "long")
    stories = [replace(story, tensors=kind) for story in STORIES[8::-1] for kind in kinds]
    examined = on_all_cores(examine, stories)
    states = set[bytes]().union(*(it.states for it in examined))
    problems = [problem for it in examined for problem in it.problems]
    with capsys.disabled():
        print(f"\ndisk states: {len(states)} in {len(stories)} stories, violations {len(problems)}")
    assert problems == []
    assert len(states) >= 10_000
