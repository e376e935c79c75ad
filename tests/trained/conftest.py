"""The fixtures that run a command and that train a toy run once."""

from pathlib import Path

import pytest

from sftctl.train.run import run_training
from tests.toys.commands import sftctl as sftctl
from tests.toys.runs import toy_config


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished toy run with two checkpoints and a validation."""
    folder = tmp_path_factory.mktemp("served")
    config = toy_config(folder, train__epochs=1, data__val_fraction=0.3, checkpoint__keep=2)
    return run_training(config).run_dir
