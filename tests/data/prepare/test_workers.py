import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sftctl.data.prepare.workers import in_order
from sftctl.errors import DataError


def slow_when_even(item):
    time.sleep(0.02 * (item % 2 == 0))
    return item, os.getpid()


def test_results_come_in_the_items_order_from_other_processes():
    results = list(in_order(slow_when_even, range(20), 3))
    assert [item for item, _ in results] == list(range(20))
    assert os.getpid() not in {pid for _, pid in results}
    assert len({pid for _, pid in results}) > 1


@pytest.mark.parametrize(("items", "num_workers"), [(range(5), 1), ([4], 3), ([], 3)])
def test_one_worker_or_one_item_needs_no_other_process(items, num_workers):
    results = list(in_order(slow_when_even, items, num_workers))
    assert results == [(item, os.getpid()) for item in items]


def test_items_are_taken_a_few_at_a_time():
    taken = []

    def items():
        for item in range(100):
            taken.append(item)
            yield item

    results = in_order(slow_when_even, items(), 2)
    next(results)
    assert len(taken) <= 6
    results.close()


def refuse(item):
    if item == 7:
        raise DataError("rows.jsonl:7: bad", "mend it")


def test_what_the_work_raises_is_raised_here():
    with pytest.raises(DataError, match=r"rows\.jsonl:7: bad") as caught:
        list(in_order(refuse, range(20), 2))
    assert caught.value.hint == "mend it"


def die_at_seven(item):
    if item == 7:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_a_data_error():
    with pytest.raises(DataError, match="a worker process died: killed, or out of memory") as error:
        list(in_order(die_at_seven, range(20), 2))
    assert error.value.hint == "try fewer --workers"


def endless(folder):
    """Two workers that never end, each telling its number by a file."""

    def work(item):
        (folder / str(os.getpid())).touch()
        time.sleep(600)

    list(in_order(work, range(2), 2))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_die_with_their_parent(tmp_path, number):
    code = f"from tests.data.prepare.test_workers import *; endless(Path({str(tmp_path)!r}))"
    parent = subprocess.Popen([sys.executable, "-c", code])
    wait_for(lambda: len(os.listdir(tmp_path)) == 2)
    parent.send_signal(number)
    assert parent.wait() == -number
    wait_for(lambda: not any(is_alive(int(pid)) for pid in os.listdir(tmp_path)))


def is_alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
