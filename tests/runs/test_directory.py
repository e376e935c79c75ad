from pathlib import Path

import pytest

from sftctl.config.schema import RunConfig
from sftctl.errors import ConfigError
from sftctl.runs.directory import RunDir, run_path
from tests.toys.checkpoints import FailingDisk


@pytest.mark.parametrize(
    "at", range(1, 7)
)  # create, write, sync, close, rename, sync of the folder
def test_a_configuration_that_cannot_be_written_is_told_and_leaves_no_other_file(
    tmp_path: Path, at: int
) -> None:
    (tmp_path / "config.toml").write_text("old")
    with pytest.raises(ConfigError) as caught:
        RunDir(tmp_path).write_config(RunConfig(), FailingDisk(at))
    assert caught.value.message == (
        f"{tmp_path}/config.toml: can't be written: No space left on device"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]


def test_runs_that_begin_in_the_same_second_have_names_of_their_own() -> None:
    paths = []
    for _ in range(3):
        paths.append(run_path(RunConfig()))
        paths[-1].mkdir(parents=True)
    assert len({*paths}) == 3
    assert all(path.name.startswith("small-2") for path in paths)
