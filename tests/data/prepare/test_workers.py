"""Work in child processes: order, errors, and the death of either side."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sftctl.data.prepare.workers import Work
from sftctl.errors import DataError
from sftctl.model.tokenizer.template_limits import Pulse


def slow_when_even(item: int, pulse: Pulse) -> tuple[int, int]:
    time.sleep(0.02 * (item % 2 == 0))
    return item, os.getpid()


def test_results_come_in_the_items_order_from_other_processes() -> None:
    results = list(Work(function=slow_when_even).in_order(range(20), 3))
    assert [item for item, _ in results] == list(range(20))
    assert os.getpid() not in {pid for _, pid in results}
    assert len({pid for _, pid in results}) > 1


@pytest.mark.parametrize(("items", "num_workers"), [(range(5), 1), ([4], 3), ([], 3)])
def test_even_one_item_is_done_in_another_process(items: Iterable[int], num_workers: int) -> None:
    """A chat template runs there, and this process can end it."""
    results = list(Work(function=slow_when_even).in_order(items, num_workers))
    assert [item for item, _ in results] == list(items)
    assert len({pid for _, pid in results}) == min(1, len(results))
    assert os.getpid() not in {pid for _, pid in results}


def test_items_are_taken_a_few_at_a_time() -> None:
    taken = []

    def items() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    results: Any = Work(function=slow_when_even).in_order(items(), 2)
    next(results)
    assert len(taken) <= 6
    results.close()


def refuse(item: int, pulse: Pulse) -> None:
    if item == 7:
        raise DataError("rows.jsonl:7: bad", "fix it")


def test_an_error_of_the_work_is_raised_in_the_parent() -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:7: bad") as caught:
        list(Work(function=refuse).in_order(range(20), 2))
    assert caught.value.hint == "fix it"


def die_at_seven(item: int, pulse: Pulse) -> None:
    if item == 7:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_a_data_error() -> None:
    with pytest.raises(DataError, match="a worker process died: killed, or out of memory") as error:
        list(Work(function=die_at_seven).in_order(range(20), 2))
    assert error.value.hint == "try fewer --workers"


class CannotBeSent(Exception):
    """An error that pickle refuses."""

    def __init__(self) -> None:
        super().__init__("a lambda", lambda: None)


def fail_strangely(item: int, pulse: Pulse) -> None:
    raise CannotBeSent


def test_an_error_that_cannot_be_sent_is_named() -> None:
    with pytest.raises(RuntimeError, match="CannotBeSent"):
        list(Work(function=fail_strangely).in_order(range(3), 2))


def hang_in_a_rendering(item: list[int], pulse: Pulse) -> list[int]:
    """Hang in the row that is 13, in one call of C code, as if a template ran."""
    for number, row in enumerate(item, 1):
        pulse[0] = number
        if row == 13:
            pulse[1] += 1
            sum(range(10**12))
        pulse[0] = 0
    return item


@pytest.mark.parametrize("can_fork", [True, False])
def test_a_worker_that_hangs_in_a_rendering_is_ended_and_its_items_are_done_again(
    monkeypatch: pytest.MonkeyPatch, can_fork: bool
) -> None:
    monkeypatch.setattr("sftctl.data.prepare.workers.can_fork", lambda: can_fork)
    waits: list[int] = []
    work = Work(
        function=hang_in_a_rendering,
        without_row=lambda item, row: [*item[: row - 1], -item[row - 1], *item[row:]],
        while_waiting=lambda: waits.append(1),
        silence_s=0.3,
    )
    items = [[n, n + 1] for n in range(0, 30, 2)]
    results = list(work.in_order(items, 2))
    assert results == [item if item != [12, 13] else [12, -13] for item in items]
    assert waits  # the parent was never deaf


def test_a_hang_without_a_way_to_skip_the_row_is_a_data_error() -> None:
    with pytest.raises(DataError, match="a worker process hangs in row 1 of"):
        list(Work(function=hang_in_a_rendering, silence_s=0.2).in_order([[13]], 1))


def sleep_in_a_rendering(item: int, pulse: Pulse) -> int:
    pulse[1] += 1
    time.sleep(1.0)
    pulse[1] += 1
    return item


def test_a_worker_that_sleeps_or_is_stopped_does_not_hang() -> None:
    work = Work(function=sleep_in_a_rendering, silence_s=0.1)
    assert list(work.in_order([1], 1)) == [1]


def test_what_is_called_while_waiting_may_end_the_work() -> None:
    def give_up() -> None:
        raise KeyboardInterrupt

    work = Work(function=sleep_in_a_rendering, while_waiting=give_up)
    with pytest.raises(KeyboardInterrupt):
        list(work.in_order(range(100), 2))


def endless(folder: Path) -> None:
    """Run two workers that never end. Each makes a file with its process id as the name."""

    def work(item: int, pulse: Pulse) -> None:
        (folder / str(os.getpid())).touch()
        time.sleep(600)

    list(Work(function=work).in_order(range(2), 2))


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
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
