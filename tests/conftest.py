"""Settings of the whole suite: one thread a process, and a cache of its own."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Two threads on two busy cores wait for each other far longer than they compute.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
_CACHE = tempfile.TemporaryDirectory(prefix="sftctl-tests-")
os.environ["XDG_CACHE_HOME"] = _CACHE.name


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A command without --output-dir writes into ./runs: not into the checkout."""
    monkeypatch.chdir(tmp_path)
    yield
