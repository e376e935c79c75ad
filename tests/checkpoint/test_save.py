"""save: what one rank writes, in which order it syncs, and how it fails."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint import (  # type: ignore[attr-defined]
    HuggingFaceStorageReader,
    load,
)

from sftctl.checkpoint.layout import read_manifest
from sftctl.checkpoint.load import load_tensors
from sftctl.checkpoint.save import save_checkpoint, tied_names
from sftctl.checkpoint.tensor_index import stored_tensors
from sftctl.disk import Disk
from sftctl.errors import CheckpointError
from tests.toys.checkpoints import (
    ALONE,
    CountingDisk,
    FailingDisk,
    blank,
    equal,
    make_manifest,
    make_tensors,
    save_toy,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "run" / "checkpoints"


def test_every_kind_of_tensor_comes_back_bit_by_bit(root: Path) -> None:
    path = save_toy(root, 7)
    tensors = blank(make_tensors(7))
    load_tensors(path, tensors, ALONE)
    assert path == root / "step-00000007"
    assert equal(tensors, make_tensors(7))
    assert not equal(tensors, make_tensors(8))


def test_the_manifest_comes_back_with_the_files_and_the_ties(root: Path) -> None:
    manifest = read_manifest(save_toy(root, 7))
    assert manifest.learning_rate == 1e-4 / 3
    assert manifest.aliases == {"model.head.weight": "model.embed.weight"}
    assert list(manifest.files) == ["shard-00001.safetensors"]


def test_a_checkpoint_is_safetensors_and_json_and_nothing_else(root: Path) -> None:
    path = save_toy(root, 7)
    assert sorted(file.name for file in path.iterdir()) == [
        "manifest.json",
        "manifest.json.sha256",
        "shard-00001.safetensors",
    ]
    assert [folder.name for folder in root.iterdir()] == ["step-00000007"]


def test_plain_tools_read_a_checkpoint(root: Path) -> None:
    path = save_toy(root, 7)
    plain = load_file(path / "shard-00001.safetensors")
    expected = make_tensors(7)
    del expected["model.head.weight"]
    assert equal(plain, expected)
    check = ["sha256sum", "--check", "--strict", "manifest.json.sha256"]
    assert subprocess.run(check, cwd=path, capture_output=True).returncode == 0
    assert json.loads((path / "manifest.json").read_text())["step"] == 7


def test_torchs_own_reader_reads_a_checkpoint(root: Path) -> None:
    path = save_toy(root, 7)
    expected = make_tensors(7)
    del expected["model.head.weight"]
    tensors = blank(expected)
    load(tensors, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=True)
    assert equal(tensors, expected)


def test_every_tensor_begins_at_a_multiple_of_its_width(root: Path) -> None:
    data = (save_toy(root, 7) / "shard-00001.safetensors").read_bytes()
    num_bytes = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + num_bytes])
    widths = {"F32": 4, "I64": 8, "BF16": 2, "BOOL": 1}
    starts = [
        ((8 + num_bytes + entry["data_offsets"][0]) % widths[entry["dtype"]])
        for name, entry in header.items()
        if name != "__metadata__"
    ]
    assert len(starts) == 8 and not any(starts)


@pytest.mark.parametrize("length", range(1, 9))
def test_the_data_begin_at_a_multiple_of_eight(root: Path, length: int) -> None:
    path = save_checkpoint(root, {"n" * length: torch.zeros(1)}, make_manifest(1), ALONE)
    data = (path / "shard-00001.safetensors").read_bytes()
    assert int.from_bytes(data[:8], "little") % 8 == 0


def test_the_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    one, other = save_toy(tmp_path / "a", 7), save_toy(tmp_path / "b", 7)
    for file in one.iterdir():
        assert file.read_bytes() == (other / file.name).read_bytes()


def test_tied_tensors_are_stored_once_and_equal_ones_twice() -> None:
    weight = torch.randn(2, 2)
    tensors = {"a": weight, "b": weight, "c": weight.clone(), "turned": weight.T}
    assert tied_names(tensors) == {"b": "a"}
    assert tied_names({"a": torch.empty(0), "b": torch.empty(0)}) == {}


def test_the_headers_alone_describe_the_tensors(root: Path) -> None:
    stored = stored_tensors(save_toy(root, 7), ["shard-00001.safetensors"])
    assert stored["model.half"].dtype == "BF16"
    assert stored["model.half"].shape == (3, 5)
    assert stored["model.half"].num_bytes == 30
    assert stored["model.count"].shape == ()


def test_a_full_disk_is_one_error_and_leaves_nothing(root: Path) -> None:
    old = save_toy(root, 200)
    with pytest.raises(CheckpointError) as caught:
        save_toy(root, 300, FailingDisk(at=4))
    assert caught.value.message == (
        f"can't write checkpoint step 300 in {root}: No space left on device"
    )
    assert caught.value.hint == "older checkpoints are untouched"
    assert list(root.iterdir()) == [old]


def test_a_checkpoint_is_never_overwritten(root: Path) -> None:
    path = save_toy(root, 300)
    before = (path / "manifest.json").read_bytes()
    with pytest.raises(CheckpointError) as caught:
        save_toy(root, 300)
    assert caught.value.message == (
        f"can't write checkpoint step 300 in {root}: step-00000300 exists already"
    )
    assert (path / "manifest.json").read_bytes() == before


def test_a_folder_that_appears_during_the_save_is_not_overwritten(root: Path) -> None:
    target = root / "step-00000300"
    tensors, manifest = make_tensors(), make_manifest(300)
    with pytest.raises(CheckpointError, match="step-00000300 exists already"):
        save_checkpoint(root, tensors, manifest, ALONE, before=lambda: target.mkdir(parents=True))
    assert [path.name for path in root.iterdir()] == [target.name]
    assert list(target.iterdir()) == []


def test_a_tensor_that_has_no_safetensors_type_is_named(root: Path) -> None:
    with pytest.raises(CheckpointError, match="step 3 in .*: model.c: torch.complex64 can't be"):
        save_checkpoint(
            root, {"model.c": torch.ones(2, dtype=torch.complex64)}, make_manifest(3), ALONE
        )


@pytest.mark.parametrize(
    "name", ["shard-00001.safetensors", "manifest.json", "manifest.json.sha256"]
)
def test_bytes_that_the_disk_lost_are_found_before_the_rename(root: Path, name: str) -> None:
    class RottenDisk(Disk):
        """Stores zeros in the files of that name."""

        def create(self, path: Path) -> int:
            self.rotten = path.name == name
            return super().create(path)

        def write(self, descriptor: int, data: memoryview) -> int:
            return super().write(descriptor, memoryview(bytes(len(data))) if self.rotten else data)

    with pytest.raises(CheckpointError, match="can't write .* step 3 in .*: read back: "):
        save_toy(root, 3, RottenDisk())
    assert list(root.iterdir()) == []


def test_everything_is_synced_before_the_rename_and_the_rename_before_the_end(root: Path) -> None:
    class RecordingDisk(CountingDisk):
        calls: list[str] = []

        def before(self, name: str, *args: object) -> None:
            if not self.calls or self.calls[-1] != name:  # a file takes several writes
                self.calls.append(name)

    root.mkdir(parents=True)
    save_toy(root, 3, RecordingDisk())
    a_file, a_folder = ["create", "write", "sync", "close"], ["sync_folder", "sync"]
    assert RecordingDisk.calls == [
        "make_folder",
        *3 * a_file,
        *a_folder,
        "rename",
        *a_folder,
    ]


def test_new_parent_folders_are_synced_too(root: Path) -> None:
    synced = []

    class RecordingDisk(Disk):
        def sync_folder(self, path: Path) -> None:
            synced.append(path)
            super().sync_folder(path)

    save_toy(root, 3, RecordingDisk())
    assert {root, root.parent, root.parent.parent} <= set(synced)
