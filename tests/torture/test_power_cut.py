"""A power cut right after each `saved` of real runs on ext4, and after saves without syncs."""

import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from sftctl.checkpoint.damage import problems_of
from sftctl.checkpoint.directory import list_checkpoints, newest_good
from sftctl.checkpoint.layout import read_manifest
from sftctl.disk import hash_file
from sftctl.jsonio import read_lines
from tests.toys.torture.ext4_images import cuts_of, make_image, mounted, started
from tests.toys.torture.sessions import memory_folder

pytestmark = pytest.mark.torture

REPOSITORY = Path(__file__).parents[2]
WEIGHTS = Path("final", "model.safetensors")
NUM_SAVES = 8
WITHOUT_SYNCS = """
import os, signal, torch
for step in range(1, 11):
    torch.save({"weight": torch.randn(1000, 700)}, "new.pt")
    os.replace("new.pt", f"step-{step}.pt")
    os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.fixture
def image() -> Iterator[Path]:
    with memory_folder() as folder:
        image = folder / "disk.ext4"
        try:
            make_image(image)
            with mounted(image):
                pass
        except (subprocess.CalledProcessError, OSError) as problem:
            reason = getattr(problem, "stderr", None) or problem
            pytest.skip(f"needs root, loop devices and ext4: {reason}")
        yield image


def training(run: Path, *options: object) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """`sftctl train` that pauses itself after each `saved`."""
    words = ["-m", "tests.toys.torture.stopping", "train", "--model", "tiny", "--output-dir", run]
    return started(*words, *options, folder=REPOSITORY)


def lost(run: Path, before: Path) -> list[str]:
    """What a run has lost in a power cut of what it had reported before."""
    event = list(read_lines(before / "events.jsonl"))[-1]
    assert event["event"] == "saved"
    path, original = (folder / "checkpoints" / event["path"] for folder in (run, before))
    found = []
    for each in list_checkpoints(run / "checkpoints"):
        found += [f"{each.name}: {problem}" for problem in problems_of(each, verify=True)]
    if not path.exists():
        return [*found, f"{path.name} is not there"]
    if newest_good(path.parent).path != path:
        found.append(f"{path.name} is not the newest good one")
    for file in original.iterdir():
        if hash_file(path / file.name) != hash_file(file):
            found.append(f"{path.name}/{file.name} is different")
    num_bytes = read_manifest(path).metrics_bytes
    metrics = [(folder / "metrics.jsonl").read_bytes()[:num_bytes] for folder in (run, before)]
    if metrics[0] != metrics[1] or len(metrics[0]) != num_bytes or metrics[0][-1:] != b"\n":
        found.append("metrics.jsonl lacks lines")
    return found


def test_no_save_that_was_reported_is_lost_by_a_power_cut(
    image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    num_cuts, problems = 0, []
    for keep in (1, 2, 3):
        make_image(image)
        options = ("--max-steps", NUM_SAVES, "--save-interval", 1, "--keep", keep)
        with mounted(image) as disk, training(disk / "run", *options) as process:
            for copy in cuts_of(process, image):
                num_cuts += 1
                with mounted(copy) as after:
                    problems += lost(after / "run", disk / "run")
    with capsys.disabled():
        print(f"\npower cuts after `saved`: {num_cuts}, losses {len(problems)}")
    assert problems == []
    assert num_cuts == 3 * NUM_SAVES >= 20


def test_a_run_resumed_after_a_power_cut_ends_as_one_without(image: Path) -> None:
    kept = image.with_name("kept.ext4")
    with mounted(image) as disk:
        run = disk / "run"
        with training(run, "--max-steps", 6, "--save-interval", 2) as process:
            for number, copy in enumerate(cuts_of(process, image)):
                if number == 1:
                    copy.rename(kept)
        with mounted(kept) as after:
            again = after / "run"
            with started("-m", "sftctl", "resume", again, folder=REPOSITORY) as process:
                assert process.wait() == 0
            assert hash_file(again / WEIGHTS) == hash_file(run / WEIGHTS)
            assert losses_of(again) == losses_of(run) and len(losses_of(run)) == 6


def losses_of(run: Path) -> list[object]:
    return [line["loss"] for line in read_lines(run / "metrics.jsonl")]


def test_saves_without_syncs_lose_every_file_here(
    image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    num_cuts = num_lost = 0
    with mounted(image) as disk, started("-c", WITHOUT_SYNCS, folder=disk) as process:
        for copy in cuts_of(process, image):
            num_cuts += 1
            name = f"step-{num_cuts}.pt"
            with mounted(copy) as after:
                is_there = (after / name).is_file()
                num_lost += not is_there or hash_file(after / name) != hash_file(disk / name)
    with capsys.disabled():
        print(f"\npower cuts after torch.save and os.replace: {num_cuts}, losses {num_lost}")
    assert num_lost == num_cuts == 10
