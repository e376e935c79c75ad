"""The comparison of two checkpoints: of one run, of two formats, sharded or not."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sftctl.inspection.diff import Change, CheckpointDiff, diff
from sftctl.inspection.inspect import inspect_path
from tests.toys.foreign import toy_model


def compare(a: Path, b: Path) -> CheckpointDiff:
    return diff(inspect_path(a), inspect_path(b))


def test_two_checkpoints_of_a_run(trained: Path) -> None:
    a, b = (trained / "checkpoints" / f"step-{step:08d}" for step in (3, 9))
    found = compare(a, b)
    counters = {change.key: (change.a, change.b) for change in found.counters}
    assert counters["step"] == (3, 9) and counters["epoch"] == (0, 1)
    assert "world_size" not in counters and found.config == []
    assert found.rng_equal is True  # one seed
    moved = [change.relative_change or 0 for change in found.tensors]
    assert moved == sorted(moved, reverse=True) and moved[-1] > 0
    one = found.tensors[0]
    x, y = (
        next(load_file(shard)[one.name] for shard in path.glob("*.safetensors")).double()
        for path in (a, b)
    )
    assert one.relative_change == pytest.approx(((y - x).norm() / x.norm()).item())
    assert one.max_change == (y - x).abs().max().item()
    assert any(change.name.endswith(".exp_avg") for change in found.optimizer)
    assert found.only_in_a == found.only_in_b == found.nan_appeared == []


def test_a_checkpoint_is_equal_to_itself(trained: Path) -> None:
    found = compare(trained, trained)
    assert found.counters == found.config == []
    assert all(change.is_equal and change.relative_change == 0 for change in found.tensors)


def test_the_final_model_is_the_last_checkpoint(trained: Path) -> None:
    """Two formats that store tied tensors under different names."""
    found = compare(trained, trained / "final")
    assert found.tensors and all(change.is_equal for change in found.tensors)
    assert found.only_in_b == []
    assert {name.partition(".")[0] for name in found.only_in_a} == {"optimizer"}


def test_shards_make_no_difference(tmp_path: Path) -> None:
    model = toy_model()
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="10KB")
    found = compare(tmp_path / "one", tmp_path / "many")
    assert len(found.tensors) == 25 and all(change.is_equal for change in found.tensors)


def test_half_precision_weights_and_a_trainers_weights(
    minimind: tuple[Path, Path], trainer_output: Path
) -> None:
    found = compare(minimind[0], minimind[1])
    assert len(found.tensors) == 25 and all(change.is_equal for change in found.tensors)
    found = compare(minimind[0], trainer_output / "checkpoint-4")
    assert len(found.tensors) == 25 and not any(change.is_equal for change in found.tensors)
    assert found.rng_equal is None  # MiniMind saves none


def test_rng_states_of_a_trainer_are_compared(trainer_output: Path, tmp_path: Path) -> None:
    a = trainer_output / "checkpoint-4"
    shutil.copytree(a, tmp_path / "same")
    assert compare(a, tmp_path / "same").rng_equal is True
    assert compare(a, trainer_output / "checkpoint-8").rng_equal is False


def test_new_nans_and_changed_shapes_are_reported(tmp_path: Path) -> None:
    whole = {"a": torch.ones(4), "b": torch.ones(2, 2), "zero": torch.zeros(3)}
    broken = {"a": torch.tensor([1.0, float("nan"), 1.0, 3.0]), "b": torch.ones(4)}
    save_file(whole, tmp_path / "a.safetensors")
    save_file(broken | {"zero": torch.ones(3)}, tmp_path / "b.safetensors")
    found = compare(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert found.nan_appeared == ["model.a"]
    changes = {change.name: change for change in found.tensors}
    assert changes["model.b"].error == "shape [2, 2] -> [4]"
    assert changes["model.zero"].relative_change is None  # its norm was zero
    assert changes["model.a"].relative_change == pytest.approx(2 / 3**0.5)


def test_changed_keys_and_keys_that_only_one_has(tmp_path: Path) -> None:
    """In the order of the first checkpoint's keys, then the keys that only the second has."""
    configs = ('{"same": 1, "x": {"y": 2, "z": 3}, "gone": 4}', '{"new": 5, "x": {"y": 6, "z": 3}, '
               '"same": 1}')  # fmt: skip
    for name, config in zip("ab", configs, strict=True):
        (tmp_path / name).mkdir()
        save_file({"w": torch.ones(2)}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(config)
    found = compare(tmp_path / "a", tmp_path / "b")
    assert found.config == [
        Change("model.x.y", 2, 6),
        Change("model.gone", 4, None),
        Change("model.new", None, 5),
    ]
    assert found.counters == []


def test_two_formats_are_compared_by_the_keys_that_both_have(
    minimind: tuple[Path, Path], trainer_output: Path
) -> None:
    found = compare(trainer_output / "checkpoint-4", minimind[0])
    counters = {change.key for change in found.counters}
    assert {"step", "epoch", "learning_rate", "format"} <= counters
    assert "total_steps" not in counters and "wandb_run_id" not in counters


def test_a_tensor_that_can_not_be_read_has_an_error(tmp_path: Path) -> None:
    for name in "ab":
        save_file({"w": torch.ones(2)}, tmp_path / f"{name}.safetensors")
    a, b = (inspect_path(tmp_path / f"{name}.safetensors") for name in "ab")
    (tmp_path / "b.safetensors").unlink()
    [change] = diff(a, b).tensors
    assert change.error is not None and "b.safetensors" in change.error and not change.is_equal
