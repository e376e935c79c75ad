"""Crash points, power cuts and flipped bits, a few of each; `make torture` tries thousands."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sftctl.disk import Disk
from tests.toys.checkpoints import save_toy
from tests.toys.torture.bits import draw_flips, is_found
from tests.toys.torture.cuts import (
    NeverSyncsFiles,
    NeverSyncsFolders,
    RenamesFirst,
    cut_everywhere,
)
from tests.toys.torture.points import Rehearsed, try_point
from tests.toys.torture.recording import RecordingDisk
from tests.toys.torture.stories import Story
from tests.toys.torture.telling import fast_folder

STORY = Story((10,), 10, (20,))
FRESH = Story((), 0, (10,))
BACK = Story((10, 20, 30), 10, (20,), leftovers=True)  # later ones are moved away first


@pytest.fixture
def rehearsed() -> Iterator[Rehearsed]:
    with fast_folder() as folder:
        yield Rehearsed.make(STORY, folder)


def test_a_failed_call_leaves_the_old_or_the_new_checkpoint(rehearsed: Rehearsed) -> None:
    points = [point for point in rehearsed.points() if not point[0].is_deadly]
    assert [problem for point in points for problem in try_point(rehearsed, *point)] == []
    assert len(points) > 200 and len(rehearsed.calls) > 40


def test_a_killed_process_leaves_the_old_or_the_new_checkpoint(rehearsed: Rehearsed) -> None:
    points = [point for point in rehearsed.points() if point[0].is_deadly]
    assert [problem for point in points for problem in try_point(rehearsed, *point)] == []
    assert len(points) > 60


def test_the_search_finds_that_a_deletion_in_place_leaves_half_a_checkpoint(
    rehearsed: Rehearsed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def remove_in_place(folder: Path, disk: Disk) -> None:
        disk.remove_tree(folder)

    monkeypatch.setattr("sftctl.checkpoint.directory.remove_folder", remove_in_place)
    last_removal = len(rehearsed.calls) - rehearsed.calls[::-1].index("remove")
    [fault, *_] = [fault for fault, _ in rehearsed.points() if fault.first == "EIO"]
    problems = try_point(rehearsed, fault, last_removal - 2)
    assert any("step-00000010 is half-made" in problem for problem in problems)


@pytest.mark.parametrize("story", [STORY, FRESH, BACK])
def test_a_power_cut_leaves_the_old_or_the_new_checkpoint(story: Story) -> None:
    examined = cut_everywhere(story, drawn=2)
    assert examined.problems == []
    assert len(examined.states) > 50


@pytest.mark.parametrize("recipe", [NeverSyncsFiles, NeverSyncsFolders, RenamesFirst])
def test_the_search_finds_that_too_few_syncs_lose_checkpoints(
    recipe: type[RecordingDisk],
) -> None:
    problems = cut_everywhere(STORY, drawn=0, make_disk=recipe).problems
    assert any("step-00000020 is half-made" in problem for problem in problems)


def test_a_flipped_bit_is_found_and_its_file_named(tmp_path: Path) -> None:
    path = save_toy(tmp_path, 1)
    flips = draw_flips(path, 500)
    assert [flip for flip in flips if not is_found(path, flip)] == []
    assert len(flips) == 500
