"""layout: names of checkpoints, and manifests that are refused."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sftctl import jsonio
from sftctl.checkpoint.layout import (
    checkpoint_name,
    manifest_bytes,
    manifest_hash_line,
    read_manifest,
    step_of,
)
from sftctl.errors import CorruptCheckpoint, IncompatibleCheckpoint, NoCheckpoint
from tests.toys.checkpoints import save_toy

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Change keys of a good checkpoint's manifest, and its hash with it."""
    path = save_toy(tmp_path, 300)

    def change(**changes: Any) -> Path:
        values = jsonio.loads((path / "manifest.json").read_bytes()) | changes
        data = jsonio.dump_pretty({k: v for k, v in values.items() if v is not ...})
        (path / "manifest.json").write_bytes(data)
        (path / "manifest.json.sha256").write_bytes(manifest_hash_line(data))
        return path

    return change


@pytest.mark.parametrize("step", [0, 300, 99_999_999, 100_000_000])
def test_a_name_is_read_back_as_its_step(step: int) -> None:
    assert step_of(checkpoint_name(step)) == step


@pytest.mark.parametrize(
    "name",
    ["old-step-00000009", "step-9", "step-000000300", "step-00000300 ", "step-٠٠٠٠٠٠٠٣", "final"],
)
def test_other_names_are_not_checkpoints(name: str) -> None:
    assert step_of(name) is None


def test_unknown_keys_are_ignored(write: Write) -> None:
    assert read_manifest(write(weather="fine")).step == 300


FILE = {"num_bytes": 1, "sha256": "0" * 64}


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/b", "..", ".", "", "a\0b", "-x", ".x", "manifest.json"]
)
def test_a_file_name_that_is_not_plain_is_refused(write: Write, name: str) -> None:
    path = write(files={name: FILE})
    with pytest.raises(CorruptCheckpoint) as caught:
        read_manifest(path)
    assert caught.value.message == (
        f"{path}/manifest.json: files: {name!r} is not a plain name of a data file"
    )


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"step": ...}, "step: missing"),
        ({"step": "300"}, "step: str is the wrong type"),
        ({"step": True}, "step: bool is the wrong type"),
        ({"metrics_bytes": -1}, "metrics_bytes: -1 is negative"),
        ({"learning_rate": None}, "learning_rate: NoneType is the wrong type"),
        ({"scaler": [1]}, "scaler: list is the wrong type"),
        ({"aliases": {"a": 1}}, "aliases: dict is the wrong type"),
        ({"files": []}, "files: list is the wrong type"),
        ({"files": {"a": {"num_bytes": 1}}}, "files: a: not a size and a SHA-256"),
        ({"files": {"a": {"num_bytes": 1, "sha256": "x"}}}, "files: a: not a size and a SHA-256"),
        ({"format_version": "1"}, "format_version: '1' is not a version"),
        ({"format_version": 0}, "format_version: 0 is not a version"),
        ({"step": 200}, "its step is 200, but the folder's name says another step"),
    ],
)
def test_a_wrong_manifest_is_refused(write: Write, changes: dict[str, Any], problem: str) -> None:
    path = write(**changes)
    with pytest.raises(CorruptCheckpoint) as caught:
        read_manifest(path)
    assert caught.value.message == f"{path}/manifest.json: {problem}"


def test_a_newer_format_is_incompatible_not_corrupt(write: Write) -> None:
    path = write(format_version=2)
    with pytest.raises(IncompatibleCheckpoint) as caught:
        read_manifest(path)
    assert caught.value.message == f"{path}: checkpoint format 2; this sftctl reads up to 1"
    assert caught.value.hint == "use the sftctl that wrote it, or a newer one"


@pytest.mark.parametrize("name", ["manifest.json", "manifest.json.sha256"])
def test_a_manifest_is_read_from_regular_files_only(write: Write, name: str) -> None:
    path = write()
    (path / name).rename(path / "elsewhere")
    with pytest.raises(CorruptCheckpoint, match=f"{name}: missing"):
        read_manifest(path)
    (path / name).symlink_to(path / "elsewhere")
    with pytest.raises(CorruptCheckpoint, match=f"{name}: not a regular file"):
        read_manifest(path)
    (path / name).unlink()
    os.mkfifo(path / name)
    with pytest.raises(CorruptCheckpoint, match=f"{name}: not a regular file"):
        read_manifest(path)


def test_a_manifest_that_would_fill_memory_is_not_read(write: Write) -> None:
    path = write()
    os.truncate(path / "manifest.json", 1 << 40)
    with pytest.raises(CorruptCheckpoint, match=r"manifest.json: too long \(1099511627776 bytes\)"):
        read_manifest(path)


def test_a_manifest_that_is_not_json_is_refused(write: Write) -> None:
    path = write()
    (path / "manifest.json").write_bytes(b"[" * 100_000)
    (path / "manifest.json.sha256").write_bytes(manifest_hash_line(b"[" * 100_000))
    with pytest.raises(CorruptCheckpoint, match="manifest.json:1: not JSON: "):
        read_manifest(path)


def test_a_missing_folder_is_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(NoCheckpoint, match="gone: no such checkpoint"):
        read_manifest(tmp_path / "gone")


def test_numbers_are_in_the_manifest_only_if_there_are_any(tmp_path: Path) -> None:
    manifest = read_manifest(save_toy(tmp_path, 1))
    assert "numbers" not in jsonio.loads(manifest_bytes(manifest))
    with_numbers = replace(manifest, numbers={"ema": 0.5})
    assert jsonio.loads(manifest_bytes(with_numbers))["numbers"] == {"ema": 0.5}
