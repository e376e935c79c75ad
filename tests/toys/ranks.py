"""Run a function on several ranks of a real gloo world, as torchrun would start them."""

import os
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from tests.toys.ports import free_port
from tests.toys.warm import WARM


def run_ranks(n: int, fn: Callable[..., Any], *args: object, timeout_s: float = 600) -> list[Any]:
    """`fn(*args)` in `n` new processes; its values in rank order, or the first rank's error.

    `fn` must be importable, and enters the world by itself (`sftctl.world.start_world`).
    """
    port, processes, pipes = free_port(), [], []
    for rank in range(n):
        receiver, sender = WARM.Pipe(duplex=False)
        process = WARM.Process(target=_rank, args=(rank, n, port, sender, fn, args))
        process.start()
        sender.close()
        processes.append(process)
        pipes.append(receiver)
    try:
        return _results(pipes, timeout_s)
    finally:
        for process in processes:
            process.join(timeout=1)
            process.kill()
            process.join()


def run_in_turn(
    n: int, calls: Sequence[Callable[[], Any]], timeout_s: float = 600
) -> list[list[Any]]:
    """Make all `calls` on each of `n` new processes; returns each rank's results, in rank order.

    Every call may enter a world of its own. Starting a process costs seconds, so calls share one.
    """
    with_ports = [(free_port(), call) for call in calls]
    return run_ranks(n, _in_turn, with_ports, timeout_s=timeout_s)


def _in_turn(calls: Sequence[tuple[int, Callable[[], Any]]]) -> list[Any]:
    results = []
    for port, call in calls:
        os.environ["MASTER_PORT"] = str(port)  # a port of its own: the last world may still close
        results.append(call())
    return results


def _rank(
    rank: int, n: int, port: int, sender: Connection, fn: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(n),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    try:
        sender.send((fn(*args), None))
    except BaseException as error:
        error.add_note(f"on rank {rank}:\n{traceback.format_exc()}")
        sender.send((None, error))


def _results(pipes: list[Connection], timeout_s: float) -> list[Any]:
    values: dict[Connection, Any] = {}
    while len(values) < len(pipes):
        ready = wait([pipe for pipe in pipes if pipe not in values], timeout_s)
        if not ready:
            raise TimeoutError(f"{len(pipes) - len(values)} ranks gave nothing in {timeout_s} s")
        for pipe in ready:
            assert isinstance(pipe, Connection)
            try:
                values[pipe], error = pipe.recv()
            except EOFError:
                raise RuntimeError(f"rank {pipes.index(pipe)} died") from None
            if error is not None:
                raise error
    return [values[pipe] for pipe in pipes]
