"""How long commands take to start: `python -m tests.benchmarks --only start`."""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SFTCTL = [sys.executable, "-m", "sftctl"]
LIBRARIES = "import torch; from transformers import Qwen3ForCausalLM"
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "sftctl --help": [*SFTCTL, "--help"],
    "sftctl train --help": [*SFTCTL, "train", "--help"],
    "sftctl train --epoch 2 (a wrong flag)": [*SFTCTL, "train", "--epoch", "2"],
}


def starting(rounds: int) -> list[list[str]]:
    """Rows of a table: medians over rounds in turns, after one that counts for nothing."""
    times: dict[str, list[float]] = {name: [] for name in (*COMMANDS, LIBRARIES)}
    first_step = "sftctl train --model tiny, to its first step"
    prepare = "sftctl prepare-data (a file of one row)"
    times[first_step], times[prepare] = [], []
    with tempfile.TemporaryDirectory() as folder:
        (rows := Path(folder) / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
        for number in range(rounds + 1):
            for name, command in COMMANDS.items():
                times[name].append(_seconds(command))
            store = str(Path(folder) / f"{number}.store")
            times[prepare].append(_seconds([*SFTCTL, "prepare-data", str(rows), "--output", store]))
            times[LIBRARIES].append(_seconds([sys.executable, "-c", LIBRARIES]))
            run = Path(folder) / str(number)
            train = [*SFTCTL, "train", "--model", "tiny", "--device", "cpu"]
            times[first_step].append(seconds_to_a_step([*train, "--output-dir", str(run)], run))
    medians = {name: statistics.median(seconds[1:]) for name, seconds in times.items()}
    ratio = medians[first_step] / medians[LIBRARIES]
    found = [[name, f"{seconds:.3f} s"] for name, seconds in medians.items()]
    return [*found, ["the first step over the libraries alone", f"{ratio:.2f}"]]


def _seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, capture_output=True, check=False)
    return time.perf_counter() - started


def seconds_to_a_step(command: list[str], run: Path) -> float:
    """From the command to the next line of the run's metrics.jsonl. The process is then killed."""
    metrics = run / "metrics.jsonl"
    before, started = _num_bytes(metrics), time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while _num_bytes(metrics) <= before:
            if process.poll() is not None:
                raise RuntimeError((process.stderr.read() if process.stderr else b"").decode())
            time.sleep(0.002)
        seconds = time.perf_counter() - started
        process.kill()
    return seconds


def _num_bytes(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0
