"""Tests that resume is exact on this machine: train a tiny model, kill the run, and resume it."""

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from sftctl.checkpoint.directory import list_checkpoints
from sftctl.config.load import load_config
from sftctl.config.schema import RunConfig
from sftctl.errors import SftctlError
from sftctl.jsonio import read_lines
from sftctl.tracking import status
from sftctl.train.resume import ResumeRequest
from sftctl.train.run import run_training
from sftctl.train.stop import StopRequest

if TYPE_CHECKING:
    from sftctl.world import World

_STEPS = 10
_KILLED_AFTER = 7
_PATIENCE_S = 300
_COMPARED = ("step", "loss", "grad_norm", "learning_rate", "examples_digest")


@dataclass(frozen=True, slots=True)
class SelfTest:
    """The result of the self-test."""

    passed: bool
    what: str  # one line


def self_test() -> SelfTest:
    """Train ten steps. Train them again in a run that is killed and resumed. Compare every bit."""
    with tempfile.TemporaryDirectory(prefix="sftctl-doctor-") as folder:
        reference, killed = Path(folder, "reference"), Path(folder, "killed")
        said = StringIO()
        try:
            with redirect_stderr(said):
                train = partial(
                    run_training, stop=StopRequest()
                )  # without signal handlers, so Ctrl-C ends the test
                train(_config(reference))
                status.doing("training again, in a run that is killed")
                died = _train_until_killed(killed)
                saved = [path.name for path in list_checkpoints(killed / "checkpoints")]
                train(_config(killed), ResumeRequest(killed))
        except SftctlError as error:
            return SelfTest(False, f"a run ended with an error: {error.message}")
        if died != -signal.SIGKILL:
            return SelfTest(False, f"the run ended with exit code {died} before it was killed")
        return _compared(reference, killed, saved)


def _config(run: Path) -> RunConfig:
    values: dict[str, object] = {
        "output_dir": str(run),
        "model.name": "tiny",
        "train.batch_size": 8,
        "train.max_steps": _STEPS,
        "train.dtype": "float32",
        "checkpoint.save_interval": 2,
        "tracking.log_interval": 1000,
    }
    return load_config(None, values)


def _train_until_killed(run: Path) -> int:
    """Train in a separate process that kills itself with SIGKILL. Returns its exit code."""
    code = "from sftctl.bench.selftest import die; import sys; die(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(run)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_PATIENCE_S,
    )
    return done.returncode


def die(run: str) -> None:
    """Train, and kill this process after seven steps."""
    with _KillsItself(Path(run)) as stop:
        run_training(_config(Path(run)), stop=stop)


class _KillsItself(StopRequest):
    """Kills the process between two steps, without any cleanup, like a power cut."""

    def __init__(self, run: Path) -> None:
        super().__init__()
        self._metrics = run / "metrics.jsonl"

    def requested(self, world: "World") -> str | None:
        if self._metrics.exists() and len(list(read_lines(self._metrics))) >= _KILLED_AFTER:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().requested(world)


def _compared(reference: Path, killed: Path, saved: list[str]) -> SelfTest:
    steps = [
        [tuple(line[key] for key in _COMPARED) for line in read_lines(run / "metrics.jsonl")]
        for run in (reference, killed)
    ]
    differ = [a[0] for a, b in zip(*steps, strict=False) if a != b]
    models = [(run / "final/model.safetensors").read_bytes() for run in (reference, killed)]
    if differ or len(steps[1]) != _STEPS:
        return SelfTest(False, f"the resumed run differs from step {min(differ, default=0)} on")
    if models[0] != models[1]:
        return SelfTest(False, "the resumed run ends with another model")
    where = f"resumed from {saved[-1]}" if saved else "begun again, because nothing was saved yet"
    return SelfTest(
        True,
        f"resume is exact on this machine ({_STEPS} steps of tiny, killed after step "
        f"{_KILLED_AFTER}, {where}: losses and weights equal to the last bit)",
    )
