"""One flipped bit anywhere in a checkpoint is found."""

from pathlib import Path

import pytest

from sftctl.checkpoint.damage import problems_of
from sftctl.checkpoint.save import save_checkpoint
from tests.toys.checkpoints import ALONE, make_manifest
from tests.toys.torture.bits import draw_flips, is_found
from tests.toys.torture.scenarios import Scenario, Version, tensors_of

pytestmark = pytest.mark.torture


def test_ten_thousand_flipped_bits_are_found_and_their_files_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = tensors_of(Scenario((), 0, (), tensors="long"), Version(10, "new"))
    path = save_checkpoint(tmp_path, tensors, make_manifest(10), ALONE)
    flips = draw_flips(path, 10_000)
    missed = [flip for flip in flips if not is_found(path, flip)]
    with capsys.disabled():
        print(f"\nflipped bits: {len(set(flips))}, missed {len(missed)}")
    assert len(set(flips)) == 10_000 and missed == []
    assert {flip.file for flip in flips} == {file.name for file in path.iterdir()}
    assert problems_of(path, verify=True) == []
