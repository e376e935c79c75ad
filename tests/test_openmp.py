"""Threads give way while other processes need the cores."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from sftctl import environment, openmp

two_cores = pytest.mark.skipif(
    sys.platform != "linux" or environment.usable_cores() < 2,
    reason="needs libgomp, and two threads on two cores",
)

START = """
import json, os, sys, threading, time
import torch
from sftctl.openmp import Spins, threads_give_way
torch.manual_seed(0)
torch.set_num_threads(2)
matrix = torch.rand(700, 700)
def compute():
    return (matrix @ matrix).sin().sum().item()
def num_threads():
    compute()
    return len(os.listdir("/proc/self/task"))
def names():
    return {thread.name for thread in threading.enumerate()}
"""

SHORTEN = """
spins, seen = Spins(), [(num_threads(), compute())]
def look(share):
    spins.choose(share)
    seen.append((num_threads(), compute()))
    return spins.are_short
short = [look(share) for share in (0.05, 0.5, 0.05, 0, 0, 0, 0, 0.05, 0, 0, 0, 0, 0)]
deadline = time.monotonic() + 60
while num_threads() > seen[0][0] and time.monotonic() < deadline:
    time.sleep(0.01)
print(json.dumps([short, [n for n, _ in seen], num_threads(), len({value for _, value in seen})]))
"""

BESIDE_OTHERS = """
import subprocess
endless = [sys.executable, "-c", "while True: pass"]
loops = [subprocess.Popen(endless) for _ in range(os.cpu_count())]
try:
    with threads_give_way():
        deadline = time.monotonic() + 120
        while "sleeping-team" not in names() and time.monotonic() < deadline:
            compute()
        during = names()
    while len(names()) > 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    print(json.dumps([sorted(during), sorted(names())]))
finally:
    for loop in loops:
        loop.kill()
"""

FEW_THREADS = """
start = threading._start_new_thread
def limited(*arguments):
    global allowed
    if allowed == 0:
        raise RuntimeError("can't start new thread")  # as Python does
    allowed -= 1
    return start(*arguments)
compute()
threading._start_new_thread = limited
with threads_give_way():
    print(json.dumps([sorted(names()), os.environ.get("GOMP_SPINCOUNT")]))
    spins = Spins()
    allowed = 0
    spins.choose(0.5)
    assert not spins.are_short
"""

WATCHED = """
with threads_give_way():
    print(json.dumps("core-watch" in names()))
"""


def result(code: str, **given: str) -> Any:
    """What a process with this code and these variables prints."""
    return json.loads(
        subprocess.run(
            [sys.executable, "-c", START + code],
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path), **given},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout
    )


@two_cores
def test_a_sleeping_team_makes_spins_short_until_the_cores_are_free_again() -> None:
    short, threads, at_the_end, num_results = result(SHORTEN)
    assert short == [False, *[True] * 11, False]
    assert threads[1] == threads[0]
    assert threads[2:12] == [threads[0] + environment.usable_cores()] * 10
    assert at_the_end == threads[0]
    assert num_results == 1


@two_cores
def test_the_spins_are_short_beside_busy_processes() -> None:
    during, after = result(BESIDE_OTHERS)
    assert {"core-watch", "sleeping-team"} <= set(during)
    assert after == ["MainThread"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how long threads waited")
@pytest.mark.parametrize(
    ("given", "is_watched"),
    [({}, True), ({"GOMP_SPINCOUNT": "7"}, False), ({"OMP_WAIT_POLICY": "ACTIVE"}, False)],
)
def test_a_setting_of_the_user_stays(given: dict[str, str], is_watched: bool) -> None:
    assert result(WATCHED, **given) is is_watched


@pytest.mark.parametrize("given", [None, "7"])
def test_where_waits_are_unknown_threads_spin_briefly_unless_the_user_has_decided(
    monkeypatch: pytest.MonkeyPatch, given: str | None
) -> None:
    monkeypatch.setattr(openmp, "nanoseconds_waited", dict)
    monkeypatch.setenv("GOMP_SPINCOUNT", given or "")  # so that it is restored in any case
    if given is None:
        monkeypatch.delenv("GOMP_SPINCOUNT")
    with openmp.threads_give_way():
        assert os.environ["GOMP_SPINCOUNT"] == (given or "1000")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how long threads waited")
@pytest.mark.parametrize(
    ("allowed", "expected"),
    [(9, [["MainThread"], "1000"]), (99, [["MainThread", "core-watch"], None])],
)
def test_nothing_fails_where_hardly_any_threads_are_allowed(
    allowed: int, expected: list[object]
) -> None:
    assert result(f"allowed = {allowed}\n{FEW_THREADS}") == expected
