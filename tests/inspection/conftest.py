"""Real checkpoints. Each is made once; a test that changes it makes a copy."""

import shutil
import warnings
from pathlib import Path

import pytest

from sftctl.environment import cache_folder
from sftctl.train.run import run_training
from tests.toys.foreign import save_distributed, save_minimind, train_by_trainer
from tests.toys.runs import toy_config


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ours: twelve steps in two epochs, a checkpoint at every step."""
    folder = tmp_path_factory.mktemp("ours")
    run_training(toy_config(folder))
    return folder / "run"


@pytest.fixture(scope="session")
def trainer_output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_by_trainer(tmp_path_factory.mktemp("trainer"))


@pytest.fixture(scope="session")
def minimind(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The resume file and the weights."""
    return save_minimind(tmp_path_factory.mktemp("minimind"))


@pytest.fixture(scope="session")
def distributed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return save_distributed(tmp_path_factory.mktemp("dcp") / "checkpoint")


@pytest.fixture
def own_cache(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that the test may empty, with the store that `trained` was trained on."""
    cache = tmp_path / "cache"
    shutil.copytree(cache_folder(), cache / "sftctl")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return cache
