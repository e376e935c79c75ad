"""A few disk faults, power cuts and flipped bits; `make torture` tries thousands."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sftctl.disk import Disk
from tests.toys.checkpoints import save_toy
from tests.toys.torture.bits import draw_flips, is_found
from tests.toys.torture.disk_faults import Recorded, try_fault
from tests.toys.torture.power_cuts import (
    NeverSyncsFiles,
    NeverSyncsFolders,
    RenamesFirst,
    cut_everywhere,
)
from tests.toys.torture.recording import RecordingDisk
from tests.toys.torture.scenarios import Scenario
from tests.toys.torture.sessions import memory_folder

RESUMED = Scenario((10,), 10, (20,))
NEW = Scenario((), 0, (10,))
GOES_BACK = Scenario((10, 20, 30), 10, (20,), has_leftovers=True)  # moves later ones away first


@pytest.fixture
def recorded() -> Iterator[Recorded]:
    with memory_folder() as folder:
        yield Recorded.make(RESUMED, folder)


def test_a_failed_call_leaves_the_old_or_the_new_checkpoint(recorded: Recorded) -> None:
    faults = [one for one in recorded.all_faults() if not one[0].is_deadly]
    assert [problem for one in faults for problem in try_fault(recorded, *one)] == []
    assert len(faults) > 200 and len(recorded.calls) > 40


def test_a_killed_process_leaves_the_old_or_the_new_checkpoint(recorded: Recorded) -> None:
    faults = [one for one in recorded.all_faults() if one[0].is_deadly]
    assert [problem for one in faults for problem in try_fault(recorded, *one)] == []
    assert len(faults) > 60


def test_the_search_finds_that_a_deletion_in_place_leaves_half_a_checkpoint(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def remove_in_place(folder: Path, disk: Disk) -> None:
        disk.remove_tree(folder)

    monkeypatch.setattr("sftctl.checkpoint.directory.remove_folder", remove_in_place)
    last_removal = len(recorded.calls) - recorded.calls[::-1].index("remove")
    [fault, *_] = [fault for fault, _ in recorded.all_faults() if fault.first == "EIO"]
    problems = try_fault(recorded, fault, last_removal - 2)
    assert any("step-00000010 is half-made" in problem for problem in problems)


@pytest.mark.parametrize("scenario", [RESUMED, NEW, GOES_BACK])
def test_a_power_cut_leaves_the_old_or_the_new_checkpoint(scenario: Scenario) -> None:
    results = cut_everywhere(scenario, drawn=2)
    assert results.problems == []
    assert len(results.states) > 50


@pytest.mark.parametrize("recipe", [NeverSyncsFiles, NeverSyncsFolders, RenamesFirst])
def test_the_search_finds_that_too_few_syncs_lose_checkpoints(
    recipe: type[RecordingDisk],
) -> None:
    problems = cut_everywhere(RESUMED, drawn=0, make_disk=recipe).problems
    assert any("step-00000020 is half-made" in problem for problem in problems)


def test_a_flipped_bit_is_found_and_its_file_named(tmp_path: Path) -> None:
    path = save_toy(tmp_path, 1)
    flips = draw_flips(path, 500)
    assert [flip for flip in flips if not is_found(path, flip)] == []
    assert len(flips) == 500
