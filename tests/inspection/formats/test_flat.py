"""Ten gigabytes of checkpoint are inspected from their headers alone: sparse files."""

import hashlib
import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sftctl.checkpoint.layout import manifest_bytes, manifest_hash_line
from sftctl.disk import FileEntry
from tests.toys.checkpoints import make_manifest

NUM_BYTES = 10_000_000_000
NUM_TENSORS = 1000

MEASURE = """
import json, resource, sys
from pathlib import Path
from sftctl.inspection.inspect import inspect_path
def bytes_read():
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])
inspect_path(Path(sys.argv[2]))
peak, before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, bytes_read()
report = inspect_path(Path(sys.argv[1]))
print(json.dumps({
    "read": bytes_read() - before,
    "grown": 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak),
    "problems": report.problems, "parameters": report.num_parameters,
    "heavy": [m for m in ("torch", "numpy") if m in sys.modules],
}))
"""


def sparse_safetensors(file: Path, num_bytes: int = NUM_BYTES) -> None:
    each = num_bytes // NUM_TENSORS // 4
    header = {
        f"model.layers.{n}.weight": {
            "dtype": "F32",
            "shape": [each],
            "data_offsets": [4 * each * n, 4 * each * (n + 1)],
        }
        for n in range(NUM_TENSORS)
    }
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + 4 * each * NUM_TENSORS)


def ours(folder: Path, num_bytes: int) -> Path:
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


def hugging_face(folder: Path, num_bytes: int) -> Path:
    sparse_safetensors(folder / "model.safetensors", num_bytes)
    (folder / "config.json").write_text("{}")
    return folder


def gguf(folder: Path, num_bytes: int) -> Path:
    def text(name: str) -> bytes:
        return struct.pack("<Q", len(name)) + name.encode()

    each = num_bytes // NUM_TENSORS // 4 // 8 * 8
    header = b"GGUF" + struct.pack("<IQQ", 3, NUM_TENSORS, 0)
    for n in range(NUM_TENSORS):
        header += text(f"blk.{n}.attn_q.weight") + struct.pack("<IQIQ", 1, each, 0, 4 * each * n)
    with (folder / "x.gguf").open("wb") as stream:
        stream.write(header)
        stream.truncate(len(header) + 32 + 4 * each * NUM_TENSORS)
    return folder / "x.gguf"


def pth(folder: Path, num_bytes: int) -> Path:
    tensors = {f"layers.{n}.weight": torch.empty(num_bytes // 100 // 4) for n in range(100)}
    with torch.serialization.skip_data():
        torch.save(tensors, folder / "x.pth")
    return folder / "x.pth"


@pytest.mark.parametrize("make", [ours, hugging_face, gguf, pth])
def test_no_data_is_read_and_memory_stays_flat(
    tmp_path: Path, make: Callable[[Path, int], Path]
) -> None:
    paths = []
    for name, num_bytes in (("large", NUM_BYTES), ("small", 1_000_000)):
        (tmp_path / name).mkdir()
        paths.append(make(tmp_path / name, num_bytes))
    command = [sys.executable, "-c", MEASURE, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["problems"] == []
    assert found["parameters"] > 2_400_000_000
    assert found["read"] < 1_000_000  # headers and directories
    assert found["grown"] < 10_000_000  # against a checkpoint of a megabyte
    assert found["heavy"] == []
