"""Time to inspect a checkpoint of ten gigabytes, compared with a command that reads nothing."""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks import sparse


def inspecting(options: argparse.Namespace) -> list[list[str]]:
    """Rows of (what, median seconds). The files are sparse: only headers are on the disk."""
    with tempfile.TemporaryDirectory() as name:
        commands = {"sftctl --help": ["--help"]}
        makers = {
            "ours": sparse.sparse_checkpoint,
            "HF directory": sparse.sparse_model_directory,
            ".gguf": sparse.sparse_gguf,
            ".pth": sparse.sparse_torch_file,
        }
        for what, make in makers.items():
            folder = Path(name, make.__name__)
            folder.mkdir()
            commands[f"10 GB, {what}"] = ["inspect-ckpt", str(make(folder, sparse.NUM_BYTES))]
        times: dict[str, list[float]] = {what: [] for what in commands}
        for _ in range(options.rounds + 1):
            for what, arguments in commands.items():
                started = time.perf_counter()
                command = [sys.executable, "-m", "sftctl", *arguments]
                subprocess.run(command, capture_output=True, check=True)
                times[what].append(time.perf_counter() - started)
    return [[what, f"{statistics.median(all_[1:]):.2f} s"] for what, all_ in times.items()]
