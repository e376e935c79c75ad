"""Kill runs at random moments and resume them, until they are finished."""

import random
import signal
import statistics
import time
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from sftctl.config.schema import RunConfig
from sftctl.train.resume import ResumeRequest
from tests.toys.runs import assert_same_end, half_made, lora_config, toy_config
from tests.toys.torture.processes import Ranks, children, forked, send, train


@dataclass(frozen=True, slots=True)
class Loop:
    """How many kills, and of what kind of run."""

    num_kills: int
    num_ranks: int = 1
    num_workers: int = 0
    lora: bool = False  # an adapter with exact sums, resumed on one rank and on `num_ranks` in turn


@dataclass(slots=True)
class Tally:
    """Counts of the kills."""

    kills: int = 0
    inside_a_save: int = 0  # it left a checkpoint half written or half deleted
    of_one_process: int = 0  # one rank of two, or a trainer without its loader processes
    runs: int = 0


@dataclass(frozen=True, slots=True)
class _Times:
    """How long a run without kills takes, and how long a save takes."""

    run_s: float
    save_s: float


@dataclass(frozen=True, slots=True)
class _Aim:
    """When to kill, and which process."""

    save: int  # wait until this many saves have begun; 0: do not wait
    delay_s: float  # wait this long after that
    rank: int | None  # kill this rank, without its loader processes; None: all processes


def crash_loop(folder: Path, loop: Loop, seed: int) -> Tally:
    """Kill and resume until `loop` is done. Every run must end as one that was never killed."""
    draw, tally = random.Random(seed), Tally()
    in_turn = (loop.num_ranks, 1) if loop.lora else (loop.num_ranks,)
    references = {ranks: _config(folder, f"reference-{ranks}", loop) for ranks in in_turn}
    times = {ranks: _undisturbed(config, ranks) for ranks, config in references.items()}
    while tally.kills < loop.num_kills:
        config = _config(folder, f"run-{tally.runs}", loop)
        on_ranks = cycle(in_turn)  # the first session decides how steps are cut into passes
        finished = False
        while not finished:
            num_ranks = next(on_ranks)
            aim = _aim(num_ranks, times[num_ranks], draw) if tally.kills < loop.num_kills else None
            before = half_made(_path(config) / "checkpoints")
            finished = _is_finished(config, num_ranks, aim)
            if not _path(config).exists():  # killed too early: the next session is the first
                on_ranks = cycle(in_turn)
            if aim is not None and not finished:
                tally.kills += 1
                tally.of_one_process += aim.rank is not None
                tally.inside_a_save += bool(half_made(_path(config) / "checkpoints") - before)
        reference = _path(references[loop.num_ranks])
        assert_same_end(_path(config), reference, any_ranks=loop.lora)
        tally.runs += 1
    return tally


def _config(folder: Path, name: str, loop: Loop) -> RunConfig:
    make = lora_config if loop.lora else toy_config
    adapter = {"train__reduction": "exact", "adapter__dropout": 0.2} if loop.lora else {}
    return make(
        folder, name, train__batch_size=3, train__epochs=5, train__eval_interval=7,
        data__val_fraction=0.2, data__num_workers=loop.num_workers,
        checkpoint__save_interval=2, checkpoint__keep=2, **adapter,
    )  # fmt: skip


def _path(config: RunConfig) -> Path:
    assert config.output_dir is not None
    return config.output_dir


def _undisturbed(config: RunConfig, num_ranks: int) -> _Times:
    """Train a reference and measure it. A save may wait for a busy machine: the median counts."""
    saves: list[float] = []
    started = time.monotonic()
    with forked(train, config, None, ranks=num_ranks) as ranks:
        while ranks.all_run:
            _wait_for_saves(config, ranks, 1)
            save_started = time.monotonic()
            while half_made(_path(config) / "checkpoints") and ranks.all_run:
                pass
            saves.append(time.monotonic() - save_started)
        assert set(ranks.ended()) == {0}, ranks.printed()
    return _Times(time.monotonic() - started, statistics.median(saves))


def _aim(num_ranks: int, times: _Times, draw: random.Random) -> _Aim:
    some_rank = draw.randrange(num_ranks) if draw.random() < 0.5 else None
    if draw.random() < 0.7:
        return _Aim(draw.randint(1, 4), draw.uniform(0, times.save_s), some_rank)
    # If one of two ranks dies while they connect, the other waits long. So all are killed.
    some_rank = some_rank if num_ranks == 1 else None
    return _Aim(0, draw.uniform(0, times.run_s / 2), some_rank)


def _is_finished(config: RunConfig, num_ranks: int, aim: _Aim | None) -> bool:
    """Start or resume a run and kill it as `aim` says; True if the run finished first."""
    request = ResumeRequest(_path(config)) if _path(config).exists() else None
    with forked(train, config, request, ranks=num_ranks) as ranks:
        may_fail = aim is not None and _strike(config, ranks, aim)
        codes = set(ranks.ended())
        assert codes <= {0, -signal.SIGKILL, 1 if may_fail else 0}, ranks.printed()
    return codes == {0}


def _strike(config: RunConfig, ranks: Ranks, aim: _Aim) -> bool:
    """Kill. True if other ranks are left, which can't go on and end with exit code 1."""
    _wait_for_saves(config, ranks, aim.save)
    ranks.wait(aim.delay_s)
    if not ranks.all_run:
        return False
    pids = [process.pid for process in ranks.processes if process.pid is not None]
    victims = [pids[aim.rank]] if aim.rank is not None else pids
    if aim.rank is None:
        victims = [child for pid in pids for child in children(pid)] + victims
    for pid in victims:
        send(pid, signal.SIGKILL)
    return aim.rank is not None and len(pids) > 1


def _wait_for_saves(config: RunConfig, ranks: Ranks, count: int) -> None:
    """Wait until `count` saves or deletions of checkpoints have begun, or the run ends."""
    checkpoints = _path(config) / "checkpoints"
    seen = half_made(checkpoints)
    for _ in range(count):
        while ranks.all_run and half_made(checkpoints) <= seen:
            pass
        seen |= half_made(checkpoints)
