"""Settings of the whole suite: one thread a process, and a cache of its own."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.toys.warm import as_on_a_quiet_machine, spawn_warm

# No example is timed: the first one of a process also pays for imports, on a busy machine more.
# And every run has the same examples, so that a suite that was green stays green.
hypothesis.settings.register_profile(
    "untimed",
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("untimed")
# Two threads on two busy cores wait for each other far longer than they compute.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
# What a terminal, a CI service or a job may have set; it changes what is printed, or starts ranks.
for _name in (
    "COLUMNS", "LINES", "TERMINAL_WIDTH", "NO_COLOR", "FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS",
    "PYTHONIOENCODING", "SFTCTL_DEBUG", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR",
    "MASTER_PORT", "SLURM_NTASKS", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY",
):  # fmt: skip
    os.environ.pop(_name, None)
os.environ["TERM"] = "xterm"
# A suite in the background (`nohup make test &`) inherits ignored signals, and so would every
# command that it starts. A handler is not inherited: such a command has the default.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)  # the suite itself goes on
_CACHE = tempfile.TemporaryDirectory(prefix="sftctl-tests-")
os.environ["XDG_CACHE_HOME"] = _CACHE.name
os.environ["WANDB__SERVICE_WAIT"] = "600"  # seconds until a slow start of its service is an error
spawn_warm()
as_on_a_quiet_machine()


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    """Restore handlers: a command in this process ends with ignored signals, which children
    inherit."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Change the directory: a command without --output-dir writes into ./runs."""
    monkeypatch.chdir(tmp_path)
    yield
