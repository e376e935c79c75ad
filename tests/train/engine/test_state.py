"""TrainState.statefuls is the one list of what a checkpoint saves and a resume restores."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sftctl import jsonio
from sftctl.checkpoint.directory import list_checkpoints
from sftctl.checkpoint.layout import read_manifest
from sftctl.config.schema import RunConfig
from sftctl.errors import CheckpointError, IncompatibleCheckpoint
from sftctl.train.engine.state import Stateful, TrainState
from sftctl.train.opening import restored_session
from sftctl.train.resume import ResumeRequest
from sftctl.train.run import run_training
from sftctl.train.stop import StopRequest
from sftctl.world import ALONE
from tests.toys.runs import toy_config

OLD_KEYS = {
    "format_version", "step", "epoch", "step_in_epoch", "total_steps", "steps_per_epoch",
    "examples_seen", "tokens_seen", "learning_rate", "global_batch_size", "micro_batch_tokens",
    "cut_for_ranks", "num_threads", "world_size", "dtype", "scaler", "data_fingerprint", "config",
    "versions", "wandb_run_id", "metrics_bytes", "validation", "aliases", "files",
    "run_id",
}  # fmt: skip


class Patience:
    """A Stateful with a number, and perhaps with a tensor."""

    def __init__(self, tensor: torch.Tensor | None) -> None:
        self.left = 3
        self.tensor = tensor

    def state_dict(self) -> dict[str, Any]:
        return {"left": self.left} | ({} if self.tensor is None else {"tensor": self.tensor})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.left = state_dict["left"]
        assert state_dict.get("tensor") is self.tensor  # tensors are filled in place


def config_of(folder: Path) -> RunConfig:
    return toy_config(folder, train__max_steps=1, train__dtype="float16")


def list_also(extra: Stateful, monkeypatch: pytest.MonkeyPatch) -> None:
    """Add `extra` to the list."""
    listed = TrainState.statefuls
    monkeypatch.setattr(TrainState, "statefuls", lambda state: listed(state) | {"patience": extra})


@pytest.mark.parametrize("tensor", [None, torch.tensor([2.0, 7.0])])
def test_numbers_and_tensors_of_an_added_stateful_are_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tensor: torch.Tensor | None
) -> None:
    patience = Patience(None if tensor is None else tensor.clone())
    list_also(patience, monkeypatch)
    run = run_training(config_of(tmp_path)).run_dir
    patience.left = 0
    if patience.tensor is not None:
        patience.tensor.zero_()
    with restored_session(ResumeRequest(run), ALONE, StopRequest()):
        assert patience.left == 3
        assert tensor is None or torch.equal(patience.state_dict()["tensor"], tensor)


def test_a_checkpoint_without_the_numbers_of_an_added_stateful_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_training(config_of(tmp_path)).run_dir
    list_also(Patience(None), monkeypatch)
    with (
        pytest.raises(IncompatibleCheckpoint, match="its manifest has no state of patience"),
        restored_session(ResumeRequest(run), ALONE, StopRequest()),
    ):
        raise AssertionError("restored")


def test_without_other_numbers_the_manifest_has_no_new_key(tmp_path: Path) -> None:
    run = run_training(config_of(tmp_path)).run_dir
    (path,) = list_checkpoints(run / "checkpoints")
    values = jsonio.read_object(path / "manifest.json", CheckpointError)
    assert values.keys() == OLD_KEYS
    assert values["scaler"].keys() >= {"scale", "_growth_tracker"}
    assert read_manifest(path).numbers == {}
