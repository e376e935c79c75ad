"""Every file of a run, a store and an export has the mode that the umask asks for."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sftctl.train.resume import ResumeRequest
from sftctl.train.run import run_training
from sftctl.trained.export import export_model
from tests.toys.runs import toy_config


@contextmanager
def umask(value: int) -> Iterator[None]:
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize("value", [0o077, 0o002, 0o027])
def test_files_have_the_mode_that_the_umask_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: int
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with umask(value):
        config = toy_config(tmp_path, train__max_steps=2, data__val_fraction=0.3)
        run = run_training(config).run_dir
        run_training(config, ResumeRequest(run, step=1))
        export_model(run, tmp_path / "exported", "float32")
    made = [run, *run.rglob("*"), *(tmp_path / "exported").rglob("*")]
    made += (tmp_path / "cache" / "sftctl").rglob("*")
    wrong = {
        str(path): oct(stat.S_IMODE(path.stat().st_mode))
        for path in made
        if stat.S_IMODE(path.stat().st_mode) != (0o777 if path.is_dir() else 0o666) & ~value
    }
    assert wrong == {} and len(made) > 40
