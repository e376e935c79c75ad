"""sftctl inspect-ckpt, as a user types it: tables, comparison, exit codes."""

import json
import os
import re
import subprocess
import sys
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
    assert "--tensors works with one checkpoint, but two are given" in result.error
    assert "hint: leave out --tensors: the comparison shows each tensor" in result.stderr


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


UNREADABLE = """
import os, sys
from sftctl.cli.app import app
from sftctl.errors import NoCheckpoint
from sftctl.trained.checks import kind_of
from pathlib import Path
readable, locked = sys.argv[1:]
try:
    app(["inspect-ckpt", readable], prog_name="sftctl")  # loads what only root may read
except SystemExit as end:
    assert end.code == 0
os.setgroups([])
os.setuid(65534)
try:
    kind_of(Path(locked))
except NoCheckpoint:
    pass
app(["inspect-ckpt", locked], prog_name="sftctl")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("locked", [".", "config.json", "model.safetensors"])
def test_an_unreadable_path_is_exit_4(tmp_path: Path, locked: str) -> None:
    for name in ("good", "model"):
        (tmp_path / name).mkdir()
        save_file({"a": torch.ones(2)}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text("{}")
    for one in (tmp_path, *tmp_path.parents):
        if one.stat().st_uid == os.geteuid() and not one.stat().st_mode & 1:
            one.chmod(0o755)
    (tmp_path / "model" / locked).chmod(0)
    done = subprocess.run(
        [sys.executable, "-c", UNREADABLE, str(tmp_path / "good"), str(tmp_path / "model")],
        capture_output=True,
        text=True,
    )
    (tmp_path / "model" / locked).chmod(0o755)
    assert done.returncode == 4, done.stderr
    assert re.search(r"^error: .*Permission denied", done.stderr, re.MULTILINE), done.stderr


def test_a_name_that_is_not_utf8_is_shown_escaped(sftctl: Sftctl, files: Path) -> None:
    path = Path(os.fsdecode(b"bad\xff.safetensors"))
    (files / "a.safetensors").rename(path)
    result = sftctl("inspect-ckpt", path)
    assert result.exit_code == 0 and "bad\\udcff.safetensors" in result.stdout
    report = json.loads(sftctl("inspect-ckpt", path, "--json", "--tensors").stdout)
    assert report["path"] == "bad\\udcff.safetensors"


def test_a_time_beyond_2262_is_shown(sftctl: Sftctl, files: Path) -> None:
    os.utime("a.safetensors", (12_000_000_000, 12_000_000_000))
    result = sftctl("inspect-ckpt", "a.safetensors")
    assert result.exit_code == 0 and "saved 0 seconds ago" in result.stdout
    report = json.loads(sftctl("inspect-ckpt", "a.safetensors", "--json").stdout)
    assert report["saved_at"] == 12_000_000_000


@pytest.mark.parametrize("value", [2**70, -1, 1.5, "x", [1], {"a": 1}, None, True])
def test_a_trainers_state_may_hold_anything(sftctl: Sftctl, files: Path, value: object) -> None:
    Path("c").mkdir()
    (files / "a.safetensors").rename("c/model.safetensors")
    keys = ("global_step", "epoch", "max_steps", "num_train_epochs", "num_input_tokens_seen")
    logged = dict.fromkeys(("step", "loss", "learning_rate", "eval_loss"), value)
    state = {**dict.fromkeys(keys, value), "log_history": [logged, value]}
    Path("c/trainer_state.json").write_text(json.dumps(state))
    torch.save({"scale": value, "_scale": value}, "c/scaler.pt")
    torch.save({"_last_lr": [value]}, "c/scheduler.pt")
    torch.save({"param_groups": [{"lr": value}], "state": value}, "c/optimizer.pt")
    for flags in ([], ["--json"], ["--verify", "--tensors"], ["c"]):
        result = sftctl("inspect-ckpt", "c", *flags)
        assert result.exit_code == 0, result.stderr
    assert json.loads(sftctl("inspect-ckpt", "c", "--json").stdout)["format"]


def test_json_never_builds_the_text(
    sftctl: Sftctl, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the text was built")

    monkeypatch.setattr("sftctl.cli.show.checkpoint.checkpoint_report", refuse)
    monkeypatch.setattr("sftctl.cli.show.tensors.statistics_table", refuse)
    monkeypatch.setattr("sftctl.cli.show.tensors.diff_report", refuse)
    for flags in (["--json"], ["--json", "--tensors"], ["b.safetensors", "--json"]):
        assert sftctl("inspect-ckpt", "a.safetensors", *flags).exit_code == 0
