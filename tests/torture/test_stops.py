"""A hundred signals at random moments: exit code 75, no step lost, the same final weights."""

import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sftctl import jsonio
from sftctl.checkpoint.directory import list_checkpoints
from sftctl.checkpoint.layout import step_of
from sftctl.errors import EXIT_INTERRUPTED, EXIT_STOPPED
from tests.toys.runs import assert_same_end, half_made, toy_data, whole_lines
from tests.toys.torture.processes import (
    Ranks,
    catches,
    descendants,
    forked,
    fresh_sftctl,
    send,
    sftctl,
)

pytestmark = pytest.mark.torture

EVAL_INTERVAL = 2
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1)


@dataclass(frozen=True, slots=True)
class Way:
    """How the command is run, and how many signals it gets."""

    command: Callable[..., None]
    num_stops: int
    num_ranks: int = 1


@dataclass(frozen=True, slots=True)
class Times:
    """Of a command without a signal: time until its first event, and time from there to the end."""

    start_s: float
    train_s: float


WAYS = {
    "forked": Way(sftctl, 88),
    "typed": Way(fresh_sftctl, 8),
    "typed, two ranks": Way(fresh_sftctl, 4, num_ranks=2),
}


def start(run: Path) -> list[str]:
    return [
        "train", "--model", "tiny", "--data", str(toy_data(run.parent)), "--batch-size", "2",
        "--set", "data.val_fraction=0.5", "--eval-interval", str(EVAL_INTERVAL), "--epochs", "6",
        "--num-workers", "1", "--save-interval", "3", "--keep", "2", "--output-dir", str(run),
    ]  # fmt: skip


def go_on(run: Path) -> list[str]:
    return ["resume", str(run)] if run.exists() else start(run)


@pytest.mark.parametrize("name", WAYS)
def test_a_stop_at_any_moment_loses_no_step_and_changes_no_weight(
    tmp_path: Path, name: str
) -> None:
    draw, way, found = random.Random(7), WAYS[name], Counter[str]()
    reference = tmp_path / "reference"
    times = _undisturbed(way, reference)
    num_runs = 0
    while found["stopped"] < way.num_stops:
        run = tmp_path / f"run-{num_runs}"
        while found["stopped"] < way.num_stops and not (run / "final").exists():
            found.update(_stopped(way, run, times, draw))
        with _command(way, go_on(run)) as ranks:
            assert ranks.ended() == [0], ranks.printed()
        assert_same_end(run, reference)
        num_runs += 1
    print(f"\n{name}: {num_runs} runs, {dict(found)}")
    assert found["stopped"] == way.num_stops
    if way.num_stops > 50:
        for phase in ("starting", "evaluating", "training", "saving"):
            assert found[phase] >= 3, phase


def test_there_are_a_hundred_stops() -> None:
    assert sum(way.num_stops for way in WAYS.values()) == 100


@contextmanager
def _command(way: Way, arguments: list[str]) -> Iterator[Ranks]:
    """The command, once it listens to signals."""
    if way.num_ranks > 1:
        arguments = [*arguments, "--nproc-per-node", str(way.num_ranks)]
    with forked(way.command, *arguments) as ranks:
        while ranks.all_run and not catches(ranks.processes[0].pid, signal.SIGTERM):
            time.sleep(0.001)
        yield ranks


def _undisturbed(way: Way, reference: Path) -> Times:
    """Measured in the second of two runs, when caches are warm."""
    for run in (reference.with_name("warm"), reference):
        with _command(way, start(run)) as ranks:
            started = time.monotonic()
            assert ranks.ended() == [0], ranks.printed()
            whole_s = time.monotonic() - started
    events = _events(reference)
    train_s = events[-1]["time"] - events[0]["time"]
    return Times(whole_s - train_s, train_s)


def _stopped(way: Way, run: Path, times: Times, draw: random.Random) -> list[str]:
    """Send a signal at a random moment; returns how the command ended, and what it was doing."""
    before, number = len(_events(run)), draw.choice(SIGNALS)
    with _command(way, go_on(run)) as ranks:
        if draw.random() < 0.3:
            ranks.wait(draw.uniform(0, times.start_s))
        else:
            while ranks.all_run and len(_events(run)) == before:
                time.sleep(0.001)
            ranks.wait(draw.uniform(0, times.train_s / 3))
        phase = _phase(run, _events(run)[before:])
        _signal(ranks.processes[0].pid, number)
        (code,) = ranks.ended()
        if code == EXIT_INTERRUPTED:  # Ctrl-C before there is anything to save
            assert (number, phase) == (signal.SIGINT, "starting"), ranks.printed()
        elif code != EXIT_STOPPED:  # it came after the last step
            assert (run / "final").exists(), (code, ranks.printed())
            return ["too late"]
    newest = [step_of(path.name) for path in list_checkpoints(run / "checkpoints")][-1:] or [0]
    assert newest == [_num_steps(run)], (phase, ranks.printed())
    for folder in (run.parent, run, run / "checkpoints"):
        assert half_made(folder) == set()
    return ["stopped", phase]


def _signal(pid: int | None, number: signal.Signals) -> None:
    """As the system sends it: Ctrl-C, and the end of a terminal, go to every process."""
    is_of_a_terminal = number in (signal.SIGINT, signal.SIGHUP)
    everyone = [pid, *descendants(pid)] if is_of_a_terminal else [pid]
    for each in everyone:
        send(each, number)


def _phase(run: Path, events: list[dict[str, Any]]) -> str:
    """What a command is doing after these events."""
    if not events:
        return "starting"
    if half_made(run / "checkpoints"):
        return "saving"
    step = _num_steps(run)
    evaluated = ("evaluation", step) in [(event["event"], event["step"]) for event in events]
    is_new = step > events[0]["step"] or step == 0
    is_due = step % EVAL_INTERVAL == 0 and is_new and not evaluated
    return "evaluating" if is_due else "training"


def _events(run: Path) -> list[dict[str, Any]]:
    return [jsonio.loads(line) for line in whole_lines(run / "events.jsonl")]


def _num_steps(run: Path) -> int:
    return len(whole_lines(run / "metrics.jsonl"))
