"""sftctl inspect-ckpt, as a user types it: tables, comparison, exit codes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.toys.commands import Result

Sftctl = Callable[..., Result]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    weight = torch.randn(8, 8)
    save_file({"a.attn.weight": weight, "norm": torch.ones(4)}, tmp_path / "a.safetensors")
    moved = {"a.attn.weight": weight + 1, "norm": torch.tensor([1.0, float("nan"), 1, 1])}
    save_file(moved, tmp_path / "b.safetensors")
    return tmp_path


def test_tensors_are_a_table_with_histograms(sftctl: Sftctl, files: Path) -> None:
    result = sftctl("inspect-ckpt", "a.safetensors", "--tensors")
    assert result.exit_code == 0
    [line] = [line for line in result.stdout.splitlines() if line.startswith("model.a.attn")]
    assert "8x8" in line and "F32" in line and "█" in line
    report = json.loads(sftctl("inspect-ckpt", "a.safetensors", "--tensors", "--json").stdout)
    one = report["tensors"][0]
    assert one["name"] == "model.a.attn.weight"
    assert sum(one["histogram"]) == 64 and one["num_nan"] == 0


def test_two_paths_are_a_diff(sftctl: Sftctl, files: Path) -> None:
    result = sftctl("inspect-ckpt", "a.safetensors", "b.safetensors")
    assert result.exit_code == 0
    assert "2 in both, 0 equal, 2 different" in result.stdout
    [line] = [line for line in result.stdout.splitlines() if "NaN appeared" in line]
    assert "model.norm" in line
    found = json.loads(sftctl("inspect-ckpt", "a.safetensors", "b.safetensors", "--json").stdout)
    assert found["nan_appeared"] == ["model.norm"]
    assert [change["name"] for change in found["tensors"]] == ["model.a.attn.weight", "model.norm"]
    assert found["a"]["format"] == "safetensors file"


def test_tensors_of_two_are_refused(sftctl: Sftctl, files: Path) -> None:
    result = sftctl("inspect-ckpt", "a.safetensors", "b.safetensors", "--tensors")
    assert result.exit_code == 2
    assert "--tensors works on one checkpoint, and two are given" in result.error
    assert "hint: leave out --tensors to compare the two tensor by tensor" in result.stderr


@pytest.mark.parametrize("arguments", [("nothing",), ("a.safetensors", "nothing")])
def test_a_missing_path_is_exit_4(sftctl: Sftctl, files: Path, arguments: tuple[str]) -> None:
    result = sftctl("inspect-ckpt", *arguments)
    assert result.exit_code == 4
    assert result.error == "error: nothing: no such file or folder"


def test_damage_of_a_foreign_file_is_exit_4_and_named(sftctl: Sftctl, files: Path) -> None:
    data = (files / "a.safetensors").read_bytes()
    (files / "a.safetensors").write_bytes(data[:-4])
    result = sftctl("inspect-ckpt", "a.safetensors", "--verify", "--json")
    assert result.exit_code == 4 and "a.safetensors: not a safetensors header" in result.error
    report = json.loads(result.stdout)
    assert report["complete"] is report["verified"] is report["resumable"] is False
    assert report["step"] is None and report["data_fingerprint"] is None


def test_a_file_that_refers_to_code_has_a_hint_that_fits_it(sftctl: Sftctl, files: Path) -> None:
    state = {"model": {"a": torch.ones(2)}, "optimizer": eval, "epoch": 0, "step": 1}
    torch.save(state, "trap.pth")
    result = sftctl("inspect-ckpt", "trap.pth")
    assert result.exit_code == 4
    assert "step        1 (as stored under 'step'" in result.stdout
    assert result.stderr.splitlines() == [
        "error: trap.pth: refers to code: __builtin__.eval (not run)",
        "hint: do not load it with torch.load; ask its author for the weights as safetensors",
    ]


def test_a_damaged_foreign_file_has_a_hint_that_fits_it(sftctl: Sftctl, files: Path) -> None:
    (files / "a.safetensors").write_bytes((files / "a.safetensors").read_bytes()[:-4])
    result = sftctl("inspect-ckpt", "a.safetensors")
    assert result.stderr.splitlines()[1:] == ["hint: copy or download it again"]


def test_a_scaler_of_another_form_is_not_shown(sftctl: Sftctl, files: Path) -> None:
    torch.save({"model": {"a": torch.ones(2)}, "scaler": {"other": 1}}, "x.pth")
    result = sftctl("inspect-ckpt", "x.pth")
    assert result.exit_code == 0 and "dtype       float32\n" in result.stdout
