"""A rank dies, raises or hangs: with --max-restarts the run ends as one without faults."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sftctl import jsonio
from tests.toys.runs import assert_same_end, events_of, toy_data, whole_lines
from tests.toys.torture.processes import (
    PATIENCE_S,
    Ranks,
    children,
    forked,
    fresh_sftctl,
    loaders,
    send,
)

pytestmark = pytest.mark.torture

FAULTS_OF_A_RUN = 5


def kill(rank: int) -> None:
    send(rank, signal.SIGKILL)


def let_raise(rank: int) -> None:
    """Kill its loader process: the rank then raises, on whatever line it is."""
    (loader,) = loaders(rank)
    send(loader, signal.SIGKILL)


def let_hang(rank: int) -> None:
    """Pause it: the other ranks' collectives then time out."""
    send(rank, signal.SIGSTOP)


FAULTS: dict[str, tuple[Callable[[int], None], int]] = {
    "killed": (kill, 10),
    "raises": (let_raise, 10),
    "hangs": (let_hang, 3),
}


def train(run: Path) -> list[str]:
    return [
        "train", "--model", "tiny", "--data", str(toy_data(run.parent)), "--batch-size", "4",
        "--epochs", "10", "--num-workers", "1", "--save-interval", "3", "--output-dir", str(run),
        "--nproc-per-node", "2",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    with forked(fresh_sftctl, *train(run)) as launcher:
        assert launcher.ended() == [0], launcher.printed()
    return run


@pytest.mark.parametrize("name", FAULTS)
def test_a_run_with_a_bad_rank_restarts_and_ends_as_one_without_faults(
    tmp_path: Path, undisturbed: Path, name: str
) -> None:
    strike, left = FAULTS[name]
    draw, seconds = random.Random(3), list[float]()
    while left:
        run, num_faults = tmp_path / f"run-{left}", min(left, FAULTS_OF_A_RUN)
        more = ["--max-restarts", str(num_faults), "--set", "train.collective_timeout_s=10"]
        with forked(fresh_sftctl, *train(run), *more) as launcher:
            for fault in range(num_faults):
                _wait_for_steps(run, launcher, fault, draw.randint(1, 5))
                strike(draw.choice(_ranks_of(launcher)))
                struck = time.monotonic()
                _wait_for_steps(run, launcher, fault + 1, 1)
                seconds.append(time.monotonic() - struck)
            assert launcher.ended() == [0], launcher.printed()
        assert events_of(run).count("resumed") == num_faults
        assert_same_end(run, undisturbed)
        left -= num_faults
    listed = ", ".join(f"{each:.1f}" for each in seconds)
    print(f"\n{name}: seconds from the fault to the first new step: {listed}")


def _wait_for_steps(run: Path, launcher: Ranks, resumes: int, count: int) -> None:
    """Wait until the session after `resumes` resumes has trained `count` steps."""
    deadline = time.monotonic() + PATIENCE_S
    while _steps_since(run, resumes) < count:
        assert launcher.all_run and time.monotonic() < deadline, launcher.printed()
        time.sleep(0.001)


def _steps_since(run: Path, resumes: int) -> int:
    """Steps of the newest session; 0 while there were fewer resumes."""
    starts = [line for line in whole_lines(run / "events.jsonl") if b'"resumed"' in line]
    if len(starts) < resumes:
        return 0
    first = jsonio.loads(starts[-1])["step"] if starts else 0
    return len(whole_lines(run / "metrics.jsonl")) - first


def _ranks_of(launcher: Ranks) -> list[int]:
    """The rank processes, without the launcher's other processes."""
    pids = children(launcher.processes[0].pid)
    return [pid for pid in pids if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
