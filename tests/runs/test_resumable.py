"""Why a run directory lets a checkpoint be resumed or not, and what would train it longer."""

from dataclasses import replace
from pathlib import Path

import pytest

from sftctl.checkpoint.layout import CheckpointManifest
from sftctl.config.load import load_config
from sftctl.config.schema import TrainConfig
from sftctl.data.manifest import cached_store
from sftctl.errors import CheckpointError, ConfigError, IncompatibleCheckpoint, NoCheckpoint
from sftctl.runs.directory import RunDir
from sftctl.runs.resumable import (
    cached_manifest,
    flags_to_train_longer,
    obstacles_in_run,
    require_more_steps,
    require_nothing_saved,
)
from tests.toys.checkpoints import make_manifest

CONFIG = load_config(None, {"train.dtype": "float16", "train.epochs": 2})


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text('{"step":300}\n')
    return RunDir(tmp_path)


def manifest() -> CheckpointManifest:
    """At step 300 of 2 epochs of 500 steps, in float16."""
    scaled = replace(make_manifest(300), dtype="float16", scaler={"scale": 1.0})
    return replace(scaled, metrics_bytes=13)


def test_every_obstacle_is_found(run: RunDir) -> None:
    assert [*obstacles_in_run(run, Path("c"), manifest(), CONFIG)] == []
    (run.path / "model/config.json").unlink()
    (run.path / "metrics.jsonl").unlink()
    short = replace(CONFIG, train=replace(CONFIG.train, max_steps=7))
    broken = replace(manifest(), scaler=None)
    found = [*obstacles_in_run(run, Path("c"), broken, short)]
    assert [type(error) for error in found] == [
        NoCheckpoint, CheckpointError, ConfigError, IncompatibleCheckpoint,
    ]  # fmt: skip
    assert [error.message for error in found] == [
        f"{run.path}/model/config.json: missing",
        f"{run.path}/metrics.jsonl: missing; the checkpoint was made when it had 13 bytes",
        "train.max_steps: 7 steps, and the checkpoint is of step 300",
        "c: its manifest has no scaler state",
    ]


def test_metrics_that_can_not_be_read_are_an_obstacle(run: RunDir) -> None:
    (run.path / "metrics.jsonl").unlink()
    (run.path / "metrics.jsonl").symlink_to("metrics.jsonl")
    (error,) = obstacles_in_run(run, Path("c"), manifest(), CONFIG)
    assert error.message.startswith(f"{run.path}/metrics.jsonl: a link")


@pytest.mark.parametrize(
    ("epochs", "max_steps", "flags"),
    [
        (2, None, "--epochs N"),
        (2, 11, "--epochs N"),
        (2, 10, "--epochs N --max-steps N"),
        (2, 9, "--max-steps N"),
    ],
)
def test_the_flags_that_train_longer_raise_what_ends_the_run(
    epochs: int, max_steps: int | None, flags: str
) -> None:
    train = TrainConfig(epochs=epochs, max_steps=max_steps)
    manifest = replace(make_manifest(0), steps_per_epoch=5)
    assert flags_to_train_longer(train, manifest) == flags


@pytest.mark.parametrize(
    ("step", "asked", "is_new", "is_refused"),
    [
        (999, "--epochs 2", True, False),
        (1000, "--epochs 2", True, True),
        (1000, "--epochs 2", False, False),  # the same command again
        (1000, "--max-steps 5000", False, True),  # epochs end the run
    ],
)
def test_a_length_that_leaves_nothing_to_train_is_refused(
    step: int, asked: str, is_new: bool, is_refused: bool
) -> None:
    at = replace(make_manifest(step), dtype="float16")
    if not is_refused:
        require_more_steps(Path("runs/x"), at, CONFIG, asked, is_new=is_new)
        return
    with pytest.raises(ConfigError) as raised:
        require_more_steps(Path("runs/x"), at, CONFIG, asked, is_new=is_new)
    assert raised.value.message == (
        f"{asked}: nothing to train: train.epochs: 2 epochs, 1,000 steps, and the checkpoint is of "
        "step 1000"
    )
    assert raised.value.hint == "`sftctl resume runs/x --epochs N` trains longer"


def test_a_run_that_never_saved_may_start_at_step_0(run: RunDir) -> None:
    require_nothing_saved(run)
    (run.path / "events.jsonl").write_text('{"event":"started","step":0}\n[]\n{"cut')
    require_nothing_saved(run)
    run.final.mkdir()
    with pytest.raises(NoCheckpoint, match="no checkpoint, but final/ is there"):
        require_nothing_saved(run)


def test_a_damaged_store_in_the_cache_counts_as_missing() -> None:
    store = cached_store("a" * 64)
    assert cached_manifest("a" * 64) is None
    store.mkdir(parents=True)
    (store / "manifest.json").write_text("{")
    assert cached_manifest("a" * 64) is None
