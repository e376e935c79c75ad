"""Our own runs and checkpoints: the inspection of good, damaged and newer ones."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sftctl.checkpoint.layout import MANIFEST_HASH_NAME, MANIFEST_NAME, manifest_hash_line
from sftctl.errors import NoCheckpoint
from sftctl.inspection.inspect import inspect_path
from tests.toys.checkpoints import save_toy

SHARD = "shard-00001.safetensors"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with checkpoints at steps 100 and 200."""
    for step in (100, 200):
        save_toy(tmp_path / "checkpoints", step)
    (tmp_path / "run.json").write_text("{}")
    return tmp_path


def flip_last_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def test_a_checkpoint_has_its_manifest_and_its_tensors(run: Path) -> None:
    path = run / "checkpoints" / "step-00000100"
    inspection = inspect_path(path, verify=False).to_json()
    assert inspection["step"] == 100
    assert inspection["config"] == {"train": {"epochs": 2}}
    assert inspection["files"].keys() == {SHARD}
    assert inspection["path"] == str(path)
    assert (inspection["complete"], inspection["verified"], inspection["problems"]) == (
        True,
        None,
        [],
    )
    assert inspection["num_parameters"] == 44 + 7 + 15 + 18 + 1
    assert inspection["optimizer_moments"] == {"exp_avg": 1}
    assert inspection["tensors_by_group"] == {
        "model": {"num_tensors": 6, "num_bytes": 4 * 44 + 7 + 2 * 15 + 4 * 18 + 8},
        "optimizer": {"num_tensors": 2, "num_bytes": 4 * 44 + 4},
    }
    assert inspection["num_bytes"] == sum(file.stat().st_size for file in path.iterdir())
    assert "checkpoints" not in inspection


def test_a_run_is_its_newest_checkpoint_with_a_summary_of_all(run: Path) -> None:
    inspection = inspect_path(run, verify=True).to_json()
    assert (inspection["step"], inspection["verified"]) == (200, True)
    assert [row["name"] for row in inspection["checkpoints"]] == ["step-00000100", "step-00000200"]
    row = inspection["checkpoints"][0]
    assert (row["step"], row["epoch"], row["examples_seen"]) == (100, 0, 1600)
    assert row["learning_rate"] == 1e-4 / 3
    assert (row["complete"], row["verified"], row["problems"]) == (True, True, [])


def test_verify_finds_a_flipped_bit_and_names_the_file(run: Path) -> None:
    shard = run / "checkpoints" / "step-00000200" / SHARD
    flip_last_bit(shard)
    quick, full = inspect_path(run, verify=False), inspect_path(run, verify=True)
    assert (quick.complete, quick.verified, quick.damage) == (True, None, [])
    assert (full.complete, full.verified, full.resumable) == (True, False, False)
    assert full.damage == [f"{shard}: its content was changed (different SHA-256)"]


def test_damage_in_an_older_checkpoint_is_damage_of_the_run(run: Path) -> None:
    shard = run / "checkpoints" / "step-00000100" / SHARD
    shard.unlink()
    inspection = inspect_path(run, verify=True)
    assert inspection.verified and inspection.problems == []
    assert inspection.damage == [f"{shard}: missing"]


def test_a_missing_shard_is_one_problem(run: Path) -> None:
    path = run / "checkpoints" / "step-00000200"
    (path / SHARD).unlink()
    inspection = inspect_path(path, verify=True)
    assert (inspection.complete, inspection.verified, inspection.resumable) == (False, False, False)
    assert inspection.problems == [f"{SHARD}: missing"]


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff" * 64, b"\x02" + 7 * b"\0" + b"[]", b"\x08" + 7 * b"\0" + b'{"a":{}}'],
)
def test_a_broken_header_is_found_without_hashing(run: Path, data: bytes) -> None:
    path = run / "checkpoints" / "step-00000200"
    num_bytes = (path / SHARD).stat().st_size
    (path / SHARD).write_bytes(data.ljust(num_bytes, b"\0"))
    inspection = inspect_path(path, verify=False)
    [problem] = inspection.problems
    assert problem.startswith(f"{SHARD}: not a safetensors header: ")
    assert not inspection.complete


def test_an_unreadable_manifest_is_reported_not_raised(run: Path) -> None:
    path = run / "checkpoints" / "step-00000200"
    (path / "manifest.json").unlink()
    inspection = inspect_path(path, verify=True)
    assert (
        inspection.to_json()["step"] == inspection.summary()["step"] == 200
    )  # by the folder's name
    assert inspection.to_json()["epoch"] is None
    assert inspection.problems == ["manifest.json: missing"]


def test_the_working_directory_may_be_the_checkpoint(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "checkpoints" / "step-00000200" / "manifest.json.sha256").unlink()
    monkeypatch.chdir(run / "checkpoints" / "step-00000200")
    assert inspect_path(Path("."), verify=False).problems == ["manifest.json.sha256: missing"]


def test_a_run_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(NoCheckpoint) as caught:
        inspect_path(tmp_path, verify=False)
    assert caught.value.message == f"{tmp_path}: the run has no checkpoint yet"
    assert caught.value.hint == f"`sftctl resume {tmp_path}` starts it at step 0"


def test_a_path_that_no_format_recognises_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(NoCheckpoint) as caught:
        inspect_path(tmp_path, verify=False)
    assert caught.value.message == f"{tmp_path}: neither a run nor a checkpoint"
    assert caught.value.hint is not None
    assert caught.value.hint.startswith(
        "known are a run of sftctl, its final model, one of its checkpoints, "
    )


def test_a_part_of_a_run_names_the_run(run: Path) -> None:
    for part in ("run.json", "checkpoints"):
        with pytest.raises(NoCheckpoint, match=f"{part}: a part of a run$") as caught:
            inspect_path(run / part)
        assert caught.value.hint == f"inspect the run: `sftctl inspect-ckpt {run}`"


def test_a_run_without_run_json_says_which_file_is_missing(tmp_path: Path) -> None:
    save_toy(tmp_path / "checkpoints", 1)
    (tmp_path / "config.toml").touch()
    with pytest.raises(NoCheckpoint, match="run.json: missing"):
        inspect_path(tmp_path)


def test_a_cache_of_the_hub_names_the_folder_of_the_model(tmp_path: Path) -> None:
    model = tmp_path / "hub" / "models--a--b" / "snapshots" / "abc"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    for folder in (tmp_path / "hub", tmp_path / "hub" / "models--a--b"):
        with pytest.raises(NoCheckpoint, match="a folder around ") as caught:
            inspect_path(folder)
        assert caught.value.hint == f"name the folder: `sftctl inspect-ckpt {model}`"


def test_the_checkpoints_of_a_run_are_named_in_a_command(tmp_path: Path) -> None:
    save_toy(tmp_path / "checkpoints", 1)
    with pytest.raises(NoCheckpoint, match="checkpoints: a folder around step-00000001") as caught:
        inspect_path(tmp_path / "checkpoints")
    inside = tmp_path / "checkpoints/step-00000001"
    assert caught.value.hint == f"name the folder: `sftctl inspect-ckpt {inside}`"


def test_inspecting_loads_neither_torch_nor_numpy(run: Path) -> None:
    code = (
        "import sys, pathlib, sftctl.inspection.inspect as d\n"
        f"d.inspect_path(pathlib.Path({str(run)!r}), verify=True)\n"
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], env=dict(os.environ)).returncode == 0


def test_a_pipe_in_place_of_a_shard_is_a_problem_and_is_not_opened(run: Path) -> None:
    path = run / "checkpoints" / "step-00000100"
    (path / SHARD).unlink()
    os.mkfifo(path / SHARD)
    inspection = inspect_path(path, verify=True)
    assert f"{SHARD}: not a regular file" in inspection.problems and not inspection.complete


def test_a_newer_format_is_an_obstacle_and_not_damage(run: Path) -> None:
    path = run / "checkpoints" / "step-00000200"
    manifest = (path / MANIFEST_NAME).read_bytes()
    newer = manifest.replace(b'"format_version": 1', b'"format_version": 9')
    (path / MANIFEST_NAME).write_bytes(newer)
    (path / MANIFEST_HASH_NAME).write_bytes(manifest_hash_line(newer))
    inspection = inspect_path(path, verify=True)
    assert inspection.problems == [] and inspection.verified is None and not inspection.resumable
    assert inspection.obstacles == ["checkpoint format 9; this sftctl reads up to 1"]
    assert inspection.advice == "use the sftctl that wrote it, or a newer one"


def change_manifest(path: Path, old: bytes, new: bytes) -> None:
    """Change a manifest, and its hash with it."""
    data = (path / MANIFEST_NAME).read_bytes()
    assert old in data
    (path / MANIFEST_NAME).write_bytes(data.replace(old, new))
    (path / MANIFEST_HASH_NAME).write_bytes(manifest_hash_line(data.replace(old, new)))


def test_a_configuration_of_another_version_has_no_next_learning_rate(run: Path) -> None:
    path = run / "checkpoints" / "step-00000200"
    change_manifest(path, b'"epochs"', b'"unknown"')
    inspection = inspect_path(path)
    assert inspection.problems == [] and inspection.next_learning_rate is None


@pytest.mark.parametrize("line", ["", "not JSON", "5", '{"step": 199, "loss": 1.5}'])
def test_a_loss_of_another_step_is_not_shown(run: Path, line: str) -> None:
    (run / "metrics.jsonl").write_text(f"{line}\n")
    path = run / "checkpoints" / "step-00000200"
    change_manifest(path, b'"metrics_bytes": 12', b'"metrics_bytes": 999')
    assert inspect_path(path).loss is None
    (run / "metrics.jsonl").write_text('{"step": 200, "loss": 1.5}\n')
    assert inspect_path(path).loss == 1.5
