"""Sparse checkpoints of any size: only their headers take room on the disk."""

import hashlib
import json
import struct
from pathlib import Path

import torch

from sftctl.checkpoint.layout import manifest_bytes, manifest_hash_line
from sftctl.disk import FileEntry
from tests.toys.checkpoints import make_manifest

NUM_BYTES = 10_000_000_000
_NUM_TENSORS = 1000


def sparse_safetensors(file: Path, num_bytes: int = NUM_BYTES) -> None:
    each = num_bytes // _NUM_TENSORS // 4
    header = {
        f"model.layers.{n}.weight": {
            "dtype": "F32",
            "shape": [each],
            "data_offsets": [4 * each * n, 4 * each * (n + 1)],
        }
        for n in range(_NUM_TENSORS)
    }
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + 4 * each * _NUM_TENSORS)


def sparse_checkpoint(folder: Path, num_bytes: int) -> Path:
    path = folder / "step-00000100"
    path.mkdir()
    sparse_safetensors(path / "shard-00001.safetensors", num_bytes)
    size = (path / "shard-00001.safetensors").stat().st_size
    manifest = make_manifest(100)
    manifest.files["shard-00001.safetensors"] = FileEntry(size, hashlib.sha256(b"").hexdigest())
    data = manifest_bytes(manifest)
    (path / "manifest.json").write_bytes(data)
    (path / "manifest.json.sha256").write_bytes(manifest_hash_line(data))
    return path


def sparse_model_directory(folder: Path, num_bytes: int) -> Path:
    sparse_safetensors(folder / "model.safetensors", num_bytes)
    (folder / "config.json").write_text("{}")
    return folder


def sparse_gguf(folder: Path, num_bytes: int) -> Path:
    def text(name: str) -> bytes:
        return struct.pack("<Q", len(name)) + name.encode()

    each = num_bytes // _NUM_TENSORS // 4 // 8 * 8
    header = b"GGUF" + struct.pack("<IQQ", 3, _NUM_TENSORS, 0)
    for n in range(_NUM_TENSORS):
        header += text(f"blk.{n}.attn_q.weight") + struct.pack("<IQIQ", 1, each, 0, 4 * each * n)
    with (folder / "x.gguf").open("wb") as stream:
        stream.write(header)
        stream.truncate(len(header) + 32 + 4 * each * _NUM_TENSORS)
    return folder / "x.gguf"


def sparse_torch_file(folder: Path, num_bytes: int) -> Path:
    tensors = {f"layers.{n}.weight": torch.empty(num_bytes // 100 // 4) for n in range(100)}
    with torch.serialization.skip_data():
        torch.save(tensors, folder / "x.pth")
    return folder / "x.pth"
