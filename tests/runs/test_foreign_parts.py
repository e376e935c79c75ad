"""A run with a link, a pipe or a device in it is refused before anything is opened or written."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sftctl.disk import open_regular
from sftctl.train.run import run_training
from tests.toys.commands import Result
from tests.toys.commands import sftctl as sftctl
from tests.toys.runs import toy_config

Sftctl = Callable[..., Result]
FILES = ["config.toml", "run.json", "metrics.jsonl", "events.jsonl", ".lock"]
FOLDERS = ["checkpoints", "model", "final"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two steps."""
    folder = tmp_path_factory.mktemp("links")
    return run_training(toy_config(folder, train__max_steps=2)).run_dir


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


def refused(sftctl: Sftctl, run: Path, part: Path, what: str) -> None:
    resume_refused(sftctl, run, part, what)
    inspected = sftctl("inspect-ckpt", run, "--json")
    assert what in inspected.stdout and '"resumable": false' in inspected.stdout


def resume_refused(sftctl: Sftctl, run: Path, part: Path, what: str) -> None:
    words = f"error: {part}: {what}: a run is written only in its own directory"
    for more in ((), ("--dry-run",), ("--max-steps", "3"), ("--verify-replay",)):
        result = sftctl("resume", run, *more)
        assert (result.exit_code, result.error) == (4, words), more


@pytest.mark.parametrize("name", FILES)
def test_a_link_to_a_file_is_refused_and_what_it_points_to_stays(
    sftctl: Sftctl, run: Path, tmp_path: Path, name: str
) -> None:
    elsewhere = tmp_path / "elsewhere"
    if (run / name).exists():
        (run / name).rename(elsewhere)
    else:
        elsewhere.write_bytes(b"")
    before = elsewhere.read_bytes() + b""
    (run / name).symlink_to(elsewhere)
    refused(sftctl, run, run / name, "a link")
    assert elsewhere.read_bytes() == before


@pytest.mark.parametrize("name", FOLDERS)
def test_a_link_to_a_folder_is_refused_and_what_it_points_to_stays(
    sftctl: Sftctl, run: Path, tmp_path: Path, name: str
) -> None:
    elsewhere = tmp_path / "elsewhere"
    (run / name).rename(elsewhere)
    (run / name).symlink_to(elsewhere)
    before = {path: path.stat().st_mtime_ns for path in elsewhere.rglob("*")}
    refused(sftctl, run, run / name, "a link")
    assert {path: path.stat().st_mtime_ns for path in elsewhere.rglob("*")} == before


@pytest.mark.parametrize("name", FOLDERS)
def test_a_file_in_the_place_of_a_folder_is_refused(sftctl: Sftctl, run: Path, name: str) -> None:
    shutil.rmtree(run / name)
    (run / name).write_text("in the way")
    if name == "checkpoints":  # inspect-ckpt has none to tell about
        resume_refused(sftctl, run, run / name, "not a folder")
        assert "no checkpoint" in sftctl("inspect-ckpt", run, "--json").error
    else:
        refused(sftctl, run, run / name, "not a folder")
    assert (run / name).read_text() == "in the way"


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl", ".lock"])
def test_a_pipe_is_refused_and_nobody_waits_for_it(sftctl: Sftctl, run: Path, name: str) -> None:
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    refused(sftctl, run, run / name, "not a file")


def test_a_file_of_two_names_is_copied_before_it_is_written(
    sftctl: Sftctl, run: Path, tmp_path: Path
) -> None:
    """A copy made with `cp -al` shares its files with the run."""
    copy = tmp_path / "copy"
    shutil.copytree(run, copy, copy_function=os.link)
    before = {file: file.read_bytes() for file in copy.rglob("*") if file.is_file()}
    assert sftctl("resume", run, "--step", 1).exit_code == 0
    assert {file: file.read_bytes() for file in copy.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/null"), Path.mkdir])
def test_a_file_that_is_not_regular_is_not_opened(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    make(tmp_path / "x")
    with pytest.raises(OSError, match="a link, which is not followed|no file"):
        open_regular(tmp_path / "x", os.O_RDWR | os.O_CREAT)
