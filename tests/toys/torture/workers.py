"""Call a function for many values, with one process for each core."""

import logging
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar
from unittest.mock import patch

import torch

from sftctl.environment import usable_cores

T = TypeVar("T")
R = TypeVar("R")

# A fork copies the page table. With huge pages it has few entries, and takes half the time.
HUGE_PAGES = {"PYTHONMALLOC": "malloc", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def on_all_cores(act: Callable[[T], R], values: Iterable[T]) -> list[R]:
    """The results of `act` for every value. It must be importable: it runs in new processes."""
    with (
        patch.dict(os.environ, HUGE_PAGES),
        ProcessPoolExecutor(usable_cores(), get_context("spawn"), _begin) as pool,
    ):
        return list(pool.map(act, values))


def _begin() -> None:
    torch.set_num_threads(1)
    logging.disable()  # DCP logs a debug line for every act of a save
