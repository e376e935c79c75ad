"""Ranks that wait for others name them, react to signals, give up; contradictions are refused."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from sftctl import environment
from sftctl.errors import ConfigError, Stopped
from sftctl.rendezvous import meet
from tests.toys.commands import Result
from tests.toys.commands import sftctl as sftctl
from tests.toys.ports import free_port
from tests.toys.ranks import run_ranks

Sftctl = Callable[..., Result]
NAMES = (
    "RANK",
    "WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "LOCAL_RANK",
    "SLURM_NTASKS",
    "LOCAL_WORLD_SIZE",
)


@pytest.fixture(autouse=True)
def without_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_wait_ends_and_names_whom_it_waited_for(rank: int) -> None:
    place = ("localhost", free_port(), None)
    with pytest.raises(ConfigError) as error:
        meet(rank, 2, place, lambda: None, longest_wait_s=0.5)
    expected = f"rank {1 - rank} of 2 at localhost:{place[1]} did not come within 0.5 s"
    assert error.value.message == expected


def meet_twice() -> None:
    """Rank 0 ends the first meeting late: rank 1, which comes again at once, still meets it."""
    rank, place = environment.rank(), environment.meeting_point()
    first = meet(rank, 2, place, lambda: None)
    if rank == 0:
        time.sleep(1)
    del first
    second = meet(rank, 2, place, lambda: None, longest_wait_s=600)
    second.set(f"met/{rank}", "1")
    if rank == 0:
        second.wait(["met/1"])


def test_ranks_meet_again_at_a_port_that_an_earlier_meeting_is_about_to_leave() -> None:
    assert run_ranks(2, meet_twice) == [None, None]


def test_a_wait_may_be_ended_by_a_signal() -> None:
    def check() -> None:
        raise Stopped("by SIGTERM")

    with pytest.raises(Stopped):
        meet(0, 2, ("localhost", free_port(), None), check)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_host_without_an_address_is_waited_for_and_named(
    monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    """No name server is asked for this name: some answer after a minute."""
    monkeypatch.setattr("sftctl.rendezvous._CONNECT_S", 0.3)
    with pytest.raises(ConfigError, match=r"no\.\.where:29511"):
        meet(rank, 2, ("no..where", 29511, None), lambda: None, longest_wait_s=0.3)


@pytest.fixture
def silent_port() -> Iterator[int]:
    """The port of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_signal_ends_the_wait_at_a_port_that_does_not_answer(
    silent_port: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line comes first, although torch's call blocks for half a minute."""
    monkeypatch.setattr("sftctl.rendezvous._QUIET_S", 0.0)
    looks = count()

    def check() -> None:
        if next(looks) > 2:
            raise Stopped("by SIGTERM")

    with pytest.raises(Stopped):
        meet(1, 2, ("127.0.0.1", silent_port, None), check)
    place = f"127.0.0.1:{silent_port}"
    line = f"waiting for rank 0 of 2 at {place}, for at most 600 s"
    reason = "a program listens there, but is perhaps not rank 0"
    assert capsys.readouterr().err == f"{line}; {reason}\n"


def test_a_server_that_is_not_rank_0_is_named_as_such(
    silent_port: int,
) -> None:
    with pytest.raises(ConfigError, match="within 0.3 s; a program listens there, but is perhaps"):
        meet(1, 2, ("127.0.0.1", silent_port, None), lambda: None, longest_wait_s=0.3)


def test_rank_0_names_a_program_that_has_its_port(silent_port: int) -> None:
    with pytest.raises(ConfigError, match="can't wait .*: another program listens there$") as error:
        meet(0, 2, ("127.0.0.1", silent_port, None), lambda: None, longest_wait_s=0.3)
    assert "another MASTER_PORT" in (error.value.hint or "")


def test_a_host_without_an_address_is_in_the_line_that_waits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sftctl.rendezvous._QUIET_S", 0.0)
    with pytest.raises(ConfigError) as error:
        meet(1, 2, ("no..where", 29511, None), lambda: None, longest_wait_s=0.3)
    reason = "the host name no..where has no address here"
    assert capsys.readouterr().err.endswith(f"for at most 0.3 s; {reason}\n")
    assert error.value.message.endswith(f"did not come within 0.3 s; {reason}")


FIRST_OF_TWO = {
    "RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500",
}  # fmt: skip
CONTRADICTIONS: dict[str, tuple[dict[str, str], str]] = {
    "a rank alone": ({"RANK": "1"}, "has RANK=1 and no WORLD_SIZE"),
    "a size alone": (
        {"WORLD_SIZE": "2"},
        "has WORLD_SIZE=2, but no RANK and no MASTER_ADDR and no MASTER_PORT",
    ),
    "no address": (
        {"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "29500"},
        "has WORLD_SIZE=2, but no MASTER_ADDR",
    ),
    "a rank beyond": ({"WORLD_SIZE": "2", "RANK": "2"}, "has RANK=2 and WORLD_SIZE=2"),
    "no number": ({"WORLD_SIZE": "two"}, "has WORLD_SIZE=two, not a number"),
    "a negative number": ({"RANK": "-1"}, "has RANK=-1, not a number"),
    "no ranks": ({"WORLD_SIZE": "0"}, "has RANK=0 and WORLD_SIZE=0"),
    "a rank far beyond": ({"WORLD_SIZE": "2", "RANK": "5"}, "has RANK=5 and WORLD_SIZE=2"),
    "a port beyond": (
        {**FIRST_OF_TWO, "MASTER_PORT": "99999"},
        "has MASTER_PORT=99999; a port is 1 to 65535",
    ),
    "port 0": ({**FIRST_OF_TWO, "MASTER_PORT": "0"}, "has MASTER_PORT=0; a port is 1 to 65535"),
    "a port of words": ({"MASTER_PORT": "http"}, "has MASTER_PORT=http, not a number"),
    "a port of the second rank": (
        {**FIRST_OF_TWO, "RANK": "1", "MASTER_PORT": "70000"},
        "has MASTER_PORT=70000; a port is 1 to 65535",
    ),
    "more here than in all": (
        {**FIRST_OF_TWO, "LOCAL_WORLD_SIZE": "3"},
        "has LOCAL_WORLD_SIZE=3 and WORLD_SIZE=2",
    ),
    "none here": (
        {**FIRST_OF_TWO, "LOCAL_WORLD_SIZE": "0"},
        "has LOCAL_WORLD_SIZE=0 and WORLD_SIZE=2",
    ),
    "a local rank beyond": (
        {**FIRST_OF_TWO, "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "1"},
        "has LOCAL_RANK=1 and LOCAL_WORLD_SIZE=1",
    ),
    "a local rank of one": (
        {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "1"},
        "has LOCAL_RANK=1 and WORLD_SIZE=1",
    ),
    "a local rank alone": ({"LOCAL_RANK": "3"}, "has LOCAL_RANK=3 and no WORLD_SIZE"),
    "several here of one": (
        {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_WORLD_SIZE": "4"},
        "has LOCAL_WORLD_SIZE=4 and WORLD_SIZE=1",
    ),
    "several here alone": ({"LOCAL_WORLD_SIZE": "8"}, "has LOCAL_WORLD_SIZE=8 and no WORLD_SIZE"),
    "none here of one": ({"LOCAL_WORLD_SIZE": "0"}, "has LOCAL_WORLD_SIZE=0 and no WORLD_SIZE"),
    "a rank of one": ({"WORLD_SIZE": "1", "RANK": "1"}, "has RANK=1 and WORLD_SIZE=1"),
    "a local rank after its rank": (
        {**FIRST_OF_TWO, "LOCAL_RANK": "1"},
        "has LOCAL_RANK=1 and RANK=0",
    ),
    "two processes of one local rank": (
        {**FIRST_OF_TWO, "RANK": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"},
        "has LOCAL_RANK=0 and RANK=1, but all 2 ranks are on this machine",
    ),
    "several here and no local rank": (
        {**FIRST_OF_TWO, "LOCAL_WORLD_SIZE": "2"},
        "has LOCAL_WORLD_SIZE=2, but no LOCAL_RANK",
    ),
    "a local rank of words": ({"LOCAL_RANK": "first"}, "has LOCAL_RANK=first, not a number"),
}


@pytest.mark.parametrize(("variables", "message"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_variables_that_contradict_each_other_are_refused(
    monkeypatch: pytest.MonkeyPatch, sftctl: Sftctl, variables: dict[str, str], message: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as error:
        environment.require_ranks()
    assert error.value.message == f"the environment {message}"
    names = re.findall(r"`unset ([A-Z_ ]+)`", error.value.hint or "")[0].split()
    result = sftctl("train", "--model", "tiny", "--dry-run")
    known = environment.is_one_of_several() and environment.rank()
    where = f"rank {known}: " if known else ""
    assert (result.exit_code, result.error) == (2, f"error: {where}the environment {message}")
    for name in names:  # as the hint says
        monkeypatch.delenv(name, raising=False)
    environment.require_ranks()
    assert not environment.is_one_of_several()


def test_only_the_first_rank_prints_what_all_ranks_raise(
    monkeypatch: pytest.MonkeyPatch, sftctl: Sftctl, tmp_path: Path
) -> None:
    for name, value in FIRST_OF_TWO.items():
        monkeypatch.setenv(name, value)
    lost = str(tmp_path / "lost.jsonl")
    assert lost in sftctl("train", "--model", "tiny", "--data", lost).error
    monkeypatch.setenv("RANK", "1")
    assert sftctl("train", "--model", "tiny", "--data", lost).stderr == ""
    told = sftctl("prepare-data", lost, "--output", tmp_path / "store")
    assert told.exit_code == 3 and told.error.startswith(f"error: {lost}")


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"WORLD_SIZE": ""},
        {"RANK": "", "WORLD_SIZE": "1"},
        {"MASTER_ADDR": "host"},
        {"LOCAL_RANK": "0"},
        {"LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "", "MASTER_PORT": "0"},
    ],
)
def test_empty_variables_and_an_address_alone_mean_nothing(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    environment.require_ranks()
    assert (environment.rank(), environment.world_size()) == (0, 1)


def test_ranks_of_a_launcher_start_no_ranks_of_their_own(
    monkeypatch: pytest.MonkeyPatch, sftctl: Sftctl
) -> None:
    for name, value in FIRST_OF_TWO.items():
        monkeypatch.setenv(name, value)
    result = sftctl("train", "--model", "tiny", "--nproc-per-node", "2")
    assert result.exit_code == 2
    assert "a launcher has started this process as one of 2 ranks" in result.error


def test_tasks_of_slurm_that_are_no_ranks_are_warned_about(
    monkeypatch: pytest.MonkeyPatch, sftctl: Sftctl
) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "4")
    result = sftctl("train", "--model", "tiny", "--data", "missing.jsonl")
    assert "warning: SLURM started 4 tasks, but WORLD_SIZE is not set" in result.stderr
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert "SLURM" not in sftctl("train", "--data", "missing.jsonl").stderr


def test_a_run_that_waits_for_a_rank_says_so_and_hears_a_signal(tmp_path: Path) -> None:
    port = str(free_port())
    left = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-m", "sftctl", "train", "--model", "tiny", "--max-steps", "1"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=os.environ | left, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    lines: list[str] = []
    while not any("waiting" in line for line in lines) and process.poll() is None:
        lines.append(process.stderr.readline())
    assert f"waiting for rank 1 of 2 at 127.0.0.1:{port}, for at most 600 s\n" in lines
    process.send_signal(signal.SIGTERM)
    _, rest = process.communicate(timeout=300)
    assert process.returncode == 75, rest
    assert "stopped: by SIGTERM" in rest
