"""Work in child processes: order, errors, and the death of either side."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from sftctl.data.prepare.workers import in_order
from sftctl.errors import DataError


def slow_when_even(item: int) -> tuple[int, int]:
    time.sleep(0.02 * (item % 2 == 0))
    return item, os.getpid()


def test_results_come_in_the_items_order_from_other_processes() -> None:
    results = list(in_order(slow_when_even, range(20), 3))
    assert [item for item, _ in results] == list(range(20))
    assert os.getpid() not in {pid for _, pid in results}
    assert len({pid for _, pid in results}) > 1


@pytest.mark.parametrize(("items", "num_workers"), [(range(5), 1), ([4], 3), ([], 3)])
def test_one_worker_or_one_item_needs_no_other_process(
    items: Iterable[int], num_workers: int
) -> None:
    results = list(in_order(slow_when_even, items, num_workers))
    assert results == [(item, os.getpid()) for item in items]


def test_items_are_taken_a_few_at_a_time() -> None:
    taken = []

    def items() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    results = in_order(slow_when_even, items(), 2)
    next(results)
    assert len(taken) <= 6
    results.close()


def refuse(item: int) -> None:
    if item == 7:
        raise DataError("rows.jsonl:7: bad", "fix it")


def test_what_the_work_raises_is_raised_here() -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:7: bad") as caught:
        list(in_order(refuse, range(20), 2))
    assert caught.value.hint == "fix it"


def die_at_seven(item: int) -> None:
    if item == 7:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_a_data_error() -> None:
    with pytest.raises(DataError, match="a worker process died: killed, or out of memory") as error:
        list(in_order(die_at_seven, range(20), 2))
    assert error.value.hint == "try fewer --workers"


def endless(folder: Path) -> None:
    """Run two workers that never end. Each makes a file with its process id as the name."""

    def work(item: int) -> None:
        (folder / str(os.getpid())).touch()
        time.sleep(600)

    list(in_order(work, range(2), 2))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_die_with_their_parent(tmp_path: Path, number: int) -> None:
    code = f"from tests.data.prepare.test_workers import *; endless(Path({str(tmp_path)!r}))"
    parent = subprocess.Popen([sys.executable, "-c", code])
    wait_for(lambda: len(os.listdir(tmp_path)) == 2)
    parent.send_signal(number)
    assert parent.wait() == -number
    wait_for(lambda: not any(is_alive(int(pid)) for pid in os.listdir(tmp_path)))


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
