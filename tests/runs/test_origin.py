"""A checkpoint that was copied from another run is refused by every command in the same words."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sftctl.checkpoint.layout import (
    MANIFEST_HASH_NAME,
    MANIFEST_NAME,
    manifest_bytes,
    manifest_hash_line,
    read_manifest,
)
from sftctl.runs.choosing import final_checkpoint
from sftctl.runs.directory import RunDir
from sftctl.train.run import run_training
from tests.toys.commands import Result
from tests.toys.commands import sftctl as sftctl
from tests.toys.runs import toy_config

Sftctl = Callable[..., Result]


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Runs of two and of three steps, equal in everything else."""
    folder = tmp_path_factory.mktemp("origin")
    short, long = (toy_config(folder, f"run-{n}", train__max_steps=n) for n in (2, 3))
    return run_training(short).run_dir, run_training(long).run_dir


def described(checkpoint: Path, **changes: Any) -> None:
    """Give the checkpoint a manifest with `changes`."""
    data = manifest_bytes(replace(read_manifest(checkpoint), **changes))
    (checkpoint / MANIFEST_NAME).write_bytes(data)
    (checkpoint / MANIFEST_HASH_NAME).write_bytes(manifest_hash_line(data))


def test_a_checkpoint_of_another_run_is_refused(
    sftctl: Sftctl, two_runs: tuple[Path, Path], tmp_path: Path
) -> None:
    run = shutil.copytree(two_runs[0], tmp_path / "run")
    shutil.rmtree(run / "final")
    stranger = run / "checkpoints/step-00000003"
    shutil.copytree(two_runs[1] / "checkpoints/step-00000003", stranger)
    shutil.copy(two_runs[1] / "metrics.jsonl", run)
    ids = [RunDir(one).facts()["run_id"] for one in reversed(two_runs)]
    words = f"error: {stranger}: of another run (run_id {ids[0]}, and run.json says {ids[1]})"
    question = ("--prompt", "hi", "--max-new-tokens", "1")
    for command in (
        ("resume", run),
        ("resume", run, "--epochs", "3", "--dry-run"),
        ("resume", run, "--step", "3"),
        ("chat", run, *question),
        ("chat", stranger, *question),
        ("export", run, "--output", tmp_path / "out"),
        ("export", stranger, "--output", tmp_path / "out", "--format", "gguf"),
    ):
        result = sftctl(*command)
        assert (result.exit_code, result.error) == (4, words), command
    assert "of another run" in sftctl("inspect-ckpt", stranger).stdout
    assert not (tmp_path / "out").exists()


def test_an_earlier_version_s_checkpoint_and_a_copied_run_are_taken(
    sftctl: Sftctl, two_runs: tuple[Path, Path], tmp_path: Path
) -> None:
    run = shutil.copytree(two_runs[0], tmp_path / "run")
    assert sftctl("resume", run, "--dry-run").exit_code == 0
    described(run / "checkpoints/step-00000002", run_id=None)
    assert b'"run_id"' not in (run / "checkpoints/step-00000002" / MANIFEST_NAME).read_bytes()
    assert sftctl("resume", run, "--dry-run").exit_code == 0


def test_the_best_checkpoint_is_one_of_this_run(
    two_runs: tuple[Path, Path], tmp_path: Path
) -> None:
    run = RunDir(shutil.copytree(two_runs[0], tmp_path / "run"))
    for step, loss, run_id in ((1, 0.5, "another"), (2, 2.5, run.facts()["run_id"])):
        seen = {"first": 3.0, "best": loss, "last": loss, "step": step}
        described(run.checkpoints / f"step-{step:08d}", validation=seen, run_id=run_id)
    found, warning = final_checkpoint(run, "best", 2)
    assert found.manifest.step == 2
    assert warning is not None and "step-00000001: of another run (run_id another" in warning
