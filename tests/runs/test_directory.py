"""The run directory: its files, its name, its lock."""

from pathlib import Path

import pytest

from sftctl.config.load import load_config
from sftctl.config.schema import RunConfig
from sftctl.errors import ConfigError, NoCheckpoint
from sftctl.runs.directory import RunDir, new_run_path, shared_run_path
from sftctl.train.preflight.paths import check_before_loading
from sftctl.world import ALONE
from tests.toys.checkpoints import FailingDisk


@pytest.mark.parametrize(
    "at", range(1, 7)
)  # create, write, sync, close, rename, sync of the folder
def test_a_configuration_that_cannot_be_written_is_one_error_and_leaves_no_file(
    tmp_path: Path, at: int
) -> None:
    (tmp_path / "config.toml").write_text("old")
    with pytest.raises(ConfigError) as caught:
        RunDir(tmp_path).write_config(RunConfig(), FailingDisk(at))
    assert caught.value.message == (
        f"{tmp_path}/config.toml: can't be written: No space left on device"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]


def test_runs_that_begin_in_the_same_second_have_different_names() -> None:
    paths = []
    for _ in range(3):
        paths.append(new_run_path(RunConfig()))
        paths[-1].mkdir(parents=True)
    assert len({*paths}) == 3
    assert all(path.name.startswith("small-2") for path in paths)


def test_a_permission_error_under_the_lock_is_not_reported_as_another_process(
    tmp_path: Path,
) -> None:
    with pytest.raises(PermissionError, match="of the training itself"):  # noqa: SIM117
        with RunDir(tmp_path).lock():
            raise PermissionError("of the training itself")


def test_the_path_of_a_new_run_is_chosen_once_and_handed_on(tmp_path: Path) -> None:
    config = check_before_loading(load_config(None, {"model.name": "tiny"}))
    assert config.output_dir is not None and config.output_dir.parent == Path("runs")
    assert new_run_path(config) == shared_run_path(config, ALONE) == config.output_dir
    assert [*tmp_path.iterdir()] == []  # nothing is left of the file that was written to test it


def test_a_named_path_that_exists_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exists already"):
        new_run_path(RunConfig(output_dir=tmp_path))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{}", "has no run_id"),
        ('{"run_id": 5}', "has no run_id"),
        ("[]", "expected a JSON object, found list"),
        ('{"run_id": "x", "wandb_run_id": 5}', "wandb_run_id: not a text"),
    ],
)
def test_a_run_whose_facts_say_nothing_is_refused(tmp_path: Path, content: str, words: str) -> None:
    run = RunDir(tmp_path)
    run.config_file.write_text('[model]\nname = "tiny"\n')
    run.run_file.write_text(content)
    with pytest.raises(NoCheckpoint, match=words):
        RunDir.open(tmp_path)


@pytest.mark.parametrize("content", ["", "# nothing\n", "[train]\nepochs = 2\n"])
def test_an_emptied_configuration_is_refused_and_not_filled_with_defaults(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / "config.toml").write_text(content)
    with pytest.raises(NoCheckpoint, match="names no model.name"):
        RunDir(tmp_path).config()
