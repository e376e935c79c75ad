"""Ten gigabytes of checkpoint are inspected from their headers alone."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.benchmarks import sparse

MEASURE = """
import json, sys
from pathlib import Path
from sftctl.inspection.inspect import inspect_path
def bytes_read():
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])
def peak():  # in KiB; ru_maxrss begins with the peak of the process that forked
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
inspect_path(Path(sys.argv[2]))
small, before = peak(), bytes_read()
inspection = inspect_path(Path(sys.argv[1]))
print(json.dumps({
    "read": bytes_read() - before,
    "grown": 1024 * (peak() - small),
    "problems": inspection.problems, "parameters": inspection.num_parameters,
    "heavy": [m for m in ("torch", "numpy") if m in sys.modules],
}))
"""


MAKERS = [
    sparse.sparse_checkpoint,
    sparse.sparse_model_directory,
    sparse.sparse_gguf,
    sparse.sparse_torch_file,
]


@pytest.mark.parametrize("make", MAKERS)
def test_only_headers_are_read_and_memory_does_not_grow(
    tmp_path: Path, make: Callable[[Path, int], Path]
) -> None:
    paths = []
    for name, num_bytes in (("large", sparse.NUM_BYTES), ("small", 1_000_000)):
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
