"""Stop it anywhere, resume it anywhere, and get the same run."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from sftctl.checkpoint.directory import list_checkpoints
from sftctl.config.load import load_config
from sftctl.config.schema import RunConfig
from sftctl.errors import (
    CheckpointError,
    ConfigError,
    CorruptCheckpoint,
    IncompatibleCheckpoint,
    NoCheckpoint,
)
from sftctl.train.launch import run_on_ranks
from sftctl.train.resume import ResumeRequest, existing_run, plan_request
from sftctl.train.run import run_training
from sftctl.train.rundir import RunDir
from tests.train.toys import (
    STEPS_PER_EPOCH,
    events_of,
    metrics_of,
    same_run,
    toy_config,
)

LAST = 2 * STEPS_PER_EPOCH


def resume(run: Path, **request: int) -> None:
    run_training(RunDir.open(run).config(), ResumeRequest(run, **request))


def test_two_ranks_train_the_same_examples_as_one_and_one_goes_on_where_they_stopped(
    tmp_path: Path,
) -> None:
    run_training(toy_config(tmp_path, "one"))
    run_on_ranks(2, run_training, toy_config(tmp_path, "two"), None)
    one, two = metrics_of(tmp_path / "one"), metrics_of(tmp_path / "two")
    for key in ("step", "epoch", "examples_digest", "learning_rate", "num_target_tokens"):
        assert [line[key] for line in one] == [line[key] for line in two]
    assert [line["loss"] for line in one] == pytest.approx([line["loss"] for line in two], rel=1e-5)

    on_one = tmp_path / "on-one"
    shutil.copytree(tmp_path / "two", on_one)
    resume(on_one, step=7)
    lines = metrics_of(on_one)
    assert [line["examples_digest"] for line in lines] == [line["examples_digest"] for line in two]
    assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in two], 1e-5)
    events = (on_one / "events.jsonl").read_text()
    assert "2 ranks -> 1: the same examples in every step" in events


def test_an_error_on_a_rank_is_raised_in_the_parent(tmp_path: Path) -> None:
    config = toy_config(tmp_path, data__path=str(tmp_path / "gone.jsonl"))
    with pytest.raises(Exception, match=r"gone\.jsonl") as raised:
        run_on_ranks(2, run_training, config, None)
    assert raised.type.__name__ == "DataError"
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunConfig]:
    folder = tmp_path_factory.mktemp("finished")
    config = toy_config(folder, checkpoint__save_interval=4)
    run_training(config)
    return folder / "run", config


@pytest.fixture
def run(finished: tuple[Path, RunConfig], tmp_path: Path) -> Path:
    """A copy of a finished run with checkpoints at steps 4, 8 and 12."""
    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run"


def test_a_finished_run_only_gets_its_missing_final_model_back(run: Path) -> None:
    before = (run / "final/model.safetensors").read_bytes()
    (run / "final").rename(run / ".tmp-final-0123abcd")  # as a kill leaves it
    summary = run_training(RunDir.open(run).config(), ResumeRequest(run))
    assert summary.status == "nothing_to_do"
    assert (run / "final/model.safetensors").read_bytes() == before
    assert not (run / ".tmp-final-0123abcd").exists()
    assert len(metrics_of(run)) == LAST


def test_more_epochs_go_on_where_the_run_ended_and_are_remembered(run: Path) -> None:
    resume(run, epochs=3)
    assert [line["step"] for line in metrics_of(run)] == list(range(1, 3 * STEPS_PER_EPOCH + 1))
    assert metrics_of(run)[-1]["epoch"] == 2
    assert RunDir.open(run).config().train.epochs == 3
    assert "train.epochs: 2 -> 3" in (run / "events.jsonl").read_text()


def test_checkpoints_beyond_the_chosen_step_are_moved_away_not_deleted(run: Path) -> None:
    resume(run, step=4)
    (folder,) = (run / "checkpoints").glob("abandoned-*")
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000008", "step-00000012"]
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == [
        "step-00000004",
        "step-00000008",
        "step-00000012",
    ]


def test_a_run_that_goes_on_has_no_final_model_until_it_ends_again(run: Path) -> None:
    steps = {"train.max_steps": 6}
    config = load_config(run / "config.toml", {**steps, "output_dir": str(run)})
    RunDir(run).write_config(config)
    before = (run / "final/model.safetensors").read_bytes()
    resume(run, step=4)
    assert (run / "final/model.safetensors").read_bytes() != before
    assert len(metrics_of(run)) == 6


def test_fewer_epochs_than_are_trained_are_refused(run: Path) -> None:
    with pytest.raises(ConfigError, match="1 epochs are 6 steps, and the checkpoint is of step 12"):
        resume(run, epochs=1)
    assert RunDir.open(run).config().train.epochs == 2


def test_a_run_that_lost_its_model_folder_or_its_facts_is_refused(run: Path) -> None:
    shutil.rmtree(run / "model")
    with pytest.raises(CheckpointError, match=r"model/config\.json: missing"):
        resume(run, step=4)
    (run / "run.json").write_text("x")
    with pytest.raises(NoCheckpoint, match=r"run\.json:1: not JSON"):
        resume(run)


def test_auto_resume_without_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--auto-resume needs --output-dir"):
        existing_run(load_config())


def test_a_damaged_newest_checkpoint_is_told_and_the_one_before_is_used(run: Path) -> None:
    shard = next((run / "checkpoints/step-00000012").glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    reference = (run / "final/model.safetensors").read_bytes()
    resume(run)
    events = (run / "events.jsonl").read_text()
    assert "damaged, not used: step-00000012" in events and shard.name in events
    assert events_of(run)[-1] == "finished"
    assert (run / "final/model.safetensors").read_bytes() == reference


def test_a_run_without_a_checkpoint_starts_at_step_0(run: Path) -> None:
    reference = same_run(metrics_of(run))
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    resume(run)
    assert same_run(metrics_of(run)) == reference


def test_lines_beyond_the_checkpoint_are_cut_so_steps_stay_unique(run: Path) -> None:
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 13}\n{"step": 1')
    shutil.rmtree(run / "final")
    resume(run, step=8)
    assert [line["step"] for line in metrics_of(run)] == list(range(1, LAST + 1))


def test_the_plan_says_what_is_restored(run: Path) -> None:
    config = RunDir.open(run).config()
    lines = plan_request(config, ResumeRequest(run, step=8), num_ranks=2).lines()
    assert "from step-00000008: step 8 of 12, epoch 1, step 2 of 6 in it" in lines[0]
    assert "moved away: step-00000012" in lines
    assert any(line.startswith("changed: 1 ranks -> 2") for line in lines)
    assert len(list_checkpoints(run / "checkpoints")) == 3


@pytest.mark.parametrize(
    ("step", "error", "message"),
    [(5, NoCheckpoint, "no checkpoint of step 5"), (8, CorruptCheckpoint, "step-00000008")],
)
def test_a_step_that_is_absent_or_damaged_is_refused(
    run: Path, step: int, error: type[Exception], message: str
) -> None:
    (run / "checkpoints/step-00000008/manifest.json").write_text("{}")
    with pytest.raises(error, match=message):
        resume(run, step=step)
    assert not list((run / "checkpoints").glob("abandoned-*"))


def test_a_directory_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NoCheckpoint, match="not a run directory"):
        RunDir.open(tmp_path)
    with pytest.raises(NoCheckpoint, match="no such run directory"):
        RunDir.open(tmp_path / "nothing")


def test_other_data_than_the_runs_is_refused(run: Path) -> None:
    config = run / "config.toml"
    data = Path(RunDir.open(run).config().data.path or "")
    other = run.parent / "other.jsonl"
    other.write_bytes(data.read_bytes().replace(b"Count", b"Add up"))
    config.write_text(config.read_text().replace(str(data), str(other)))
    with pytest.raises(IncompatibleCheckpoint, match="trained on data"):
        resume(run)


@pytest.mark.parametrize("key", ["batch_size", "seed"])
def test_a_configuration_that_makes_other_steps_is_refused(run: Path, key: str) -> None:
    config = run / "config.toml"
    old = {"batch_size": "batch_size = 4", "seed": "seed = 0"}[key]
    config.write_text(config.read_text().replace(old, f"{key} = 3"))
    with pytest.raises(IncompatibleCheckpoint, match=f"train.{key} was"):
        resume(run)


def test_a_second_process_on_the_same_run_is_refused(run: Path) -> None:
    with RunDir.open(run).lock(), pytest.raises(ConfigError, match="another sftctl is working"):
        resume(run)


def test_a_loader_process_that_outlives_its_trainer_does_not_hold_the_lock(run: Path) -> None:
    receiver, sender = os.pipe()
    with RunDir.open(run).lock():
        loader = os.fork()
        if loader == 0:
            os.write(sender, b"!")
            signal.pause()
    os.read(receiver, 1)
    try:
        with RunDir.open(run).lock():
            pass
    finally:
        os.kill(loader, signal.SIGKILL)
        os.waitpid(loader, 0)


def test_auto_resume_finds_the_run_of_the_same_configuration_only(
    finished: tuple[Path, RunConfig], tmp_path: Path
) -> None:
    run, config = finished
    assert existing_run(config) == ResumeRequest(run)
    assert existing_run(toy_config(tmp_path)) is None
    with pytest.raises(ConfigError, match=r"with train\.batch_size = 4, not 2"):
        existing_run(toy_config(run.parent, train__batch_size=2))
