"""Stop it anywhere, resume it anywhere, and get the same run."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wandb

from sftctl import jsonio
from sftctl.checkpoint.directory import list_checkpoints
from sftctl.checkpoint.layout import manifest_hash_line, read_manifest
from sftctl.checkpoint.sealed import problems_of_sealed, read_seal
from sftctl.config.load import load_config
from sftctl.config.schema import RunConfig
from sftctl.errors import (
    CheckpointError,
    ConfigError,
    CorruptCheckpoint,
    IncompatibleCheckpoint,
    NoCheckpoint,
)
from sftctl.runs.directory import RunDir
from sftctl.train.launch import run_on_ranks
from sftctl.train.resume import ResumeRequest, existing_run, plan_request
from sftctl.train.run import run_training
from tests.toys.runs import (
    NUM_EXAMPLES,
    STEPS_PER_EPOCH,
    events_of,
    metrics_of,
    same_run,
    toy_config,
    toy_data,
)

LAST = 2 * STEPS_PER_EPOCH


def resume(run: Path, **request: Any) -> None:
    run_training(RunDir.open(run).config(), ResumeRequest(run, **request))


def test_two_ranks_train_the_same_examples_as_one_and_one_rank_resumes_their_run(
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
    assert "ranks: 2 -> 1: the same examples in every step" in events


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


def test_a_finished_run_only_gets_its_missing_final_model(run: Path) -> None:
    before = (run / "final/model.safetensors").read_bytes()
    (run / "final").rename(run / ".tmp-final-0123abcd")  # as a kill leaves it
    summary = run_training(RunDir.open(run).config(), ResumeRequest(run))
    assert summary.status == "finished"
    assert (run / "final/model.safetensors").read_bytes() == before
    assert not (run / ".tmp-final-0123abcd").exists()
    assert len(metrics_of(run)) == LAST
    assert run_training(RunDir.open(run).config(), ResumeRequest(run)).status == "nothing_to_do"


def test_more_epochs_continue_the_run_and_are_written_to_config_toml(run: Path) -> None:
    resume(run, epochs=3)
    assert [line["step"] for line in metrics_of(run)] == list(range(1, 3 * STEPS_PER_EPOCH + 1))
    assert metrics_of(run)[-1]["epoch"] == 2
    assert RunDir.open(run).config().train.epochs == 3
    assert "train.epochs: 2 -> 3" in (run / "events.jsonl").read_text()
    told = [e for e in jsonio.read_lines(run / "events.jsonl") if e["event"] == "resumed"]
    assert [event["total_steps"] for event in told] == [3 * STEPS_PER_EPOCH]


def test_checkpoints_beyond_the_chosen_step_are_moved_away_not_deleted(run: Path) -> None:
    resume(run, step=4)
    (folder,) = (run / "checkpoints").glob("abandoned-*")
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000008", "step-00000012"]
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == [
        "step-00000004",
        "step-00000008",
        "step-00000012",
    ]


def test_a_continued_run_has_no_final_model_until_it_ends_again(run: Path) -> None:
    steps = {"train.max_steps": 6}
    config = load_config(run / "config.toml", {**steps, "output_dir": str(run)})
    RunDir(run).write_config(config)
    before = (run / "final/model.safetensors").read_bytes()
    resume(run, step=4)
    assert (run / "final/model.safetensors").read_bytes() != before
    assert len(metrics_of(run)) == 6


def test_going_back_to_the_last_step_of_a_shorter_run_replaces_the_final_model(run: Path) -> None:
    edit(run, train__max_steps=4)
    before = (run / "final/model.safetensors").read_bytes()
    resume(run, step=4)
    assert (run / "final/model.safetensors").read_bytes() != before
    assert events_of(run)[-1] == "finished" and len(metrics_of(run)) == 4


def test_fewer_epochs_than_are_trained_are_refused(run: Path) -> None:
    with pytest.raises(
        ConfigError, match="1 epoch, 6 steps, and the checkpoint is of step 12"
    ) as e:
        resume(run, epochs=1)
    assert e.value.hint == f"a run can only get longer; `sftctl resume {run} --step N` goes back"
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


def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_is_used(run: Path) -> None:
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
    for path in (run / "checkpoints").iterdir():
        shutil.rmtree(path)
    shutil.rmtree(run / "final")  # as a kill before the first save leaves it
    events = jsonio.read_lines(run / "events.jsonl")
    early = [jsonio.dump_line(event) for event in events if event["step"] == 0]
    (run / "events.jsonl").write_bytes(b"".join(early))
    resume(run)
    assert same_run(metrics_of(run)) == reference


def gone(checkpoints: Path) -> None:
    """Deleted, or on a disk that is not mounted."""
    shutil.rmtree(checkpoints)


def a_link_to_nowhere(checkpoints: Path) -> None:
    gone(checkpoints)
    checkpoints.symlink_to("nowhere")


def a_file(checkpoints: Path) -> None:
    gone(checkpoints)
    checkpoints.touch()


@pytest.mark.parametrize(
    ("lose", "error", "words"),
    [
        (gone, NoCheckpoint, "no checkpoint, but events.jsonl has one of step"),
        (a_link_to_nowhere, CheckpointError, "run/checkpoints: a link: a run is written only in"),
        (a_file, CheckpointError, "run/checkpoints: not a folder: a run is written only in"),
    ],
)
@pytest.mark.parametrize("is_finished", [True, False])
def test_a_run_that_lost_its_checkpoints_is_not_started_over(
    run: Path, lose: Callable[[Path], None], error: type[Exception], words: str, is_finished: bool
) -> None:
    lose(run / "checkpoints")
    if not is_finished:
        shutil.rmtree(run / "final")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(error, match=words):
        resume(run)
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert {**after, run / ".lock": b""} == {**before, run / ".lock": b""}


def test_a_run_with_nothing_but_its_final_model_is_not_started_over(run: Path) -> None:
    gone(run / "checkpoints")
    (run / "events.jsonl").unlink()
    with pytest.raises(NoCheckpoint, match="no checkpoint, but final/ is there"):
        resume(run)
    assert (run / "final/model.safetensors").is_file()


def test_a_link_with_the_name_of_a_checkpoint_is_reported_and_set_aside(run: Path) -> None:
    newest = run / "checkpoints/step-00000012"
    newest.rename(run / "elsewhere")
    newest.symlink_to(run / "elsewhere")
    plan = plan_request(ResumeRequest(run), 1)
    assert plan.checkpoint is not None and plan.checkpoint.name == "step-00000008"
    assert plan.skipped == ("step-00000012: a link or a file, not a folder",)
    assert plan.abandoned == ("step-00000012",)
    resume(run)
    assert len(metrics_of(run)) == LAST and not newest.is_symlink()


def test_lines_beyond_the_checkpoint_are_cut_so_steps_stay_unique(run: Path) -> None:
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 13}\n{"step": 1')
    shutil.rmtree(run / "final")
    resume(run, step=8)
    assert [line["step"] for line in metrics_of(run)] == list(range(1, LAST + 1))


def test_the_plan_says_what_is_restored(run: Path) -> None:
    lines = plan_request(ResumeRequest(run, step=8), num_ranks=2).lines()
    assert "from step-00000008: step 8 of 12, epoch 2, step 2 of 6 in it" in lines[0]
    assert "moves away: step-00000012" in lines
    assert any(line.startswith("changed: ranks: 1 -> 2") for line in lines)
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


def test_a_directory_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NoCheckpoint, match="not a run directory"):
        RunDir.open(tmp_path)
    with pytest.raises(NoCheckpoint, match="no such run directory"):
        RunDir.open(tmp_path / "nothing")


def edit(run: Path, **changes: object) -> None:
    """Change keys of a run's config.toml, as its owner would in an editor."""
    given = {key.replace("__", "."): value for key, value in changes.items()}
    RunDir(run).write_config(load_config(run / "config.toml", {"output_dir": str(run), **given}))


def other_data(run: Path, count: int = NUM_EXAMPLES) -> Path:
    """Conversations of the same number, with other words."""
    folder = run.parent / "other"
    folder.mkdir()
    data = toy_data(folder, count)
    data.write_bytes(data.read_bytes().replace(b"Count", b"Add up"))
    return data


def test_other_data_is_refused_unless_it_is_allowed(run: Path) -> None:
    edit(run, data__path=str(other_data(run)))
    with pytest.raises(IncompatibleCheckpoint, match="would be a different run: data: ") as raised:
        resume(run, step=4)
    assert raised.value.hint == "undo the change, or allow it: --allow data"
    assert len(list_checkpoints(run / "checkpoints")) == 3
    resume(run, step=4, allow=frozenset({"data"}))
    assert events_of(run)[-1] == "finished"


def test_data_with_another_number_of_steps_is_refused_even_if_allowed(run: Path) -> None:
    edit(run, data__path=str(other_data(run, 40)))
    with pytest.raises(IncompatibleCheckpoint, match="10 steps per epoch, not 6: no step"):
        resume(run, step=4, allow=frozenset({"data"}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train__batch_size": 3}, "train.batch_size: 4 -> 3: the steps would hold other examples"),
        ({"train__seed": 3}, "train.seed: 0 -> 3: the steps would hold other examples"),
        ({"model__name": "small"}, "model.name: tiny -> small: a run keeps the model"),
    ],
)
def test_what_would_make_other_steps_is_impossible(
    run: Path, change: dict[str, object], message: str
) -> None:
    edit(run, **change)
    with pytest.raises(IncompatibleCheckpoint, match="can't continue: " + re.escape(message)):
        resume(run)


def test_another_learning_rate_must_be_allowed_and_is_shown_in_numbers(run: Path) -> None:
    edit(run, optim__learning_rate=5e-4)
    with pytest.raises(IncompatibleCheckpoint) as raised:
        resume(run, step=8)
    rates = "12 steps in all; learning rate of step 9 0.000232 -> 0.000116"
    assert rates in raised.value.message
    assert raised.value.hint == ("undo the change, or allow it: --allow optim.learning_rate")
    resume(run, step=8, allow=frozenset({"optim.learning_rate"}))
    assert metrics_of(run)[8]["learning_rate"] == pytest.approx(1.159e-4, rel=1e-3)


def test_what_only_changes_speed_is_free(run: Path) -> None:
    reference = [line["examples_digest"] for line in metrics_of(run)]
    edit(
        run, train__batch_size=2, train__accumulation_steps=2, train__micro_batch_tokens=64,
        data__num_workers=2, checkpoint__keep=7,
    )  # fmt: skip
    plan = plan_request(ResumeRequest(run, step=4), num_ranks=1)
    assert {d.key: d.verdict for d in plan.differences} == {
        key: "free"
        for key in (
            "train.batch_size", "train.accumulation_steps", "train.micro_batch_tokens",
            "data.num_workers", "checkpoint.keep",
        )
    }  # fmt: skip
    resume(run, step=4)
    assert [line["examples_digest"] for line in metrics_of(run)] == reference


@pytest.mark.parametrize(
    ("dtype", "bound"), [("float32", 1e-5), ("bfloat16", 1e-4), ("float16", 1e-4)]
)
def test_another_cut_changes_the_loss_by_no_more_than_the_docs_say(
    tmp_path: Path, dtype: str, bound: float
) -> None:
    run = tmp_path / "run"
    run_training(toy_config(tmp_path, train__dtype=dtype, train__micro_batch_tokens=512))
    never_cut = [line["loss"] for line in metrics_of(run)]
    edit(run, train__micro_batch_tokens=64)
    resume(run, step=2)
    losses = [line["loss"] for line in metrics_of(run)]
    assert losses == pytest.approx(never_cut, rel=bound)
    assert losses != never_cut


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("train.sed", "--allow train.sed: no such key; there are data, data.sources, train.dtype"),
        ("train.seed", "--allow train.seed: impossible: the steps would hold other examples"),
        (
            "adapter.rank",
            "--allow adapter.rank: impossible: the adapter would have other parameters",
        ),
        (
            "adapter.quantize",
            "--allow adapter.quantize: impossible: the adapter was trained on the base in the "
            "other form",
        ),
    ],
)
def test_a_key_that_can_not_be_allowed_is_refused_with_the_reason(key: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ResumeRequest(Path("run"), allow=frozenset({key}))
    assert caught.value.message.startswith(message)
    assert "adapter.alpha" in f"{caught.value.message} {caught.value.hint}"


def test_a_longer_run_says_what_its_learning_rate_does(run: Path) -> None:
    plan = plan_request(ResumeRequest(run, epochs=3), num_ranks=1)
    (line,) = [line for line in plan.lines() if "train.epochs" in line]
    assert line == (
        "changed: train.epochs: 2 -> 3: 18 steps in all; "
        "learning rate of step 13 0.0001 -> 0.000261"
    )


def test_float16_without_the_state_of_its_scaler_is_refused(run: Path) -> None:
    edit(run, train__dtype="float16")
    resume(run, step=8, allow=frozenset({"train.dtype"}))  # the scaler starts again: that is told
    path = run / "checkpoints" / "step-00000012"
    values = jsonio.loads((path / "manifest.json").read_bytes()) | {"scaler": None}
    data = jsonio.dump_pretty(values)
    (path / "manifest.json").write_bytes(data)
    (path / "manifest.json.sha256").write_bytes(manifest_hash_line(data))
    with pytest.raises(IncompatibleCheckpoint, match="its manifest has no scaler state"):
        resume(run)


HOLDS_THE_LOCK = """
import pathlib, sys
from sftctl.runs.directory import RunDir
with RunDir.open(pathlib.Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_on_the_same_run_is_refused(run: Path) -> None:
    command = [sys.executable, "-c", HOLDS_THE_LOCK, str(run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match="another sftctl is working"):
            resume(run)
        other.communicate()
    resume(run, step=8)


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


def test_auto_resume_finds_the_run_that_is_there(
    finished: tuple[Path, RunConfig], tmp_path: Path
) -> None:
    run, config = finished
    assert existing_run(config) == ResumeRequest(run, config=config)
    assert existing_run(toy_config(tmp_path)) is None


def auto_resume(run: Path, **changes: Any) -> ResumeRequest:
    """The command that began the run, with other options."""
    data = RunDir.open(run).config().data.path
    config = toy_config(run.parent, checkpoint__save_interval=4, data__path=data, **changes)
    request = existing_run(config)
    assert request is not None
    return request


def test_auto_resume_with_the_same_options_changes_nothing(run: Path) -> None:
    before = (run / "config.toml").read_bytes()
    assert plan_request(auto_resume(run), 1).differences == ()
    assert run_training(load_config(), auto_resume(run)).status == "nothing_to_do"
    assert (run / "config.toml").read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        {"tracking__log_interval": 5},
        {"tracking__wandb_project": "other"},
        {"checkpoint__keep": 2},
        {"data__num_workers": 1},
        {"train__eval_interval": 3},
        {"train__micro_batch_tokens": 64},
        {"train__epochs": 3},
    ],
)
def test_what_a_resume_may_change_auto_resume_may_change(
    run: Path, change: dict[str, object]
) -> None:
    request = auto_resume(run, **change)
    plan = plan_request(request, 1)
    assert [difference.key.replace(".", "__") for difference in plan.differences] == [*change]
    plan.refuse(request)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"train__batch_size": 2},
            "can't continue: train.batch_size: 4 -> 2: the steps would hold",
        ),
        ({"train__seed": 2}, "can't continue: train.seed: 0 -> 2: the steps would hold"),
        ({"model__name": "small"}, "can't continue: model.name: tiny -> small: a run keeps"),
        ({"optim__eps": 0.1}, "would be a different run: optim.eps: 1e-08 -> 0.1: other updates"),
        ({"data__train_on": "last"}, "would be a different run: data: "),
    ],
)
def test_what_a_resume_refuses_auto_resume_refuses_with_the_same_message(
    run: Path, change: dict[str, object], message: str
) -> None:
    request = auto_resume(run, **change)
    with pytest.raises(IncompatibleCheckpoint, match=re.escape(message)) as raised:
        plan_request(request, 1).refuse(request)
    assert raised.value.hint == "give the options of the run, or another --output-dir"


def test_auto_resume_trains_with_a_free_change_and_writes_it_to_config_toml(run: Path) -> None:
    request = auto_resume(run, train__epochs=3, tracking__log_interval=7)
    summary = run_training(auto_resume(run).applied_to(load_config()), request)
    assert (summary.status, summary.step) == ("finished", 3 * STEPS_PER_EPOCH)
    config = RunDir.open(run).config()
    assert (config.train.epochs, config.tracking.log_interval) == (3, 7)


def test_what_auto_resume_leaves_open_stays_as_the_run_decided_it(run: Path) -> None:
    edit(run, optim__learning_rate=5e-4)
    resume(run, step=8, allow=frozenset({"optim.learning_rate"}))
    assert plan_request(auto_resume(run), 1).differences == ()


def test_a_run_that_turns_wandb_on_gets_one_id_for_all_its_sessions(run: Path) -> None:
    edit(run, tracking__wandb=True)
    for _ in range(2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("WANDB_MODE", "disabled")
            resume(run, step=8)
    wandb.teardown()  # else the next test's W&B is disabled too: it keeps its first environment
    run_id = RunDir.open(run).facts()["wandb_run_id"]
    newest = list_checkpoints(run / "checkpoints")[-1]
    assert isinstance(run_id, str) and read_manifest(newest).wandb_run_id == run_id


def test_before_the_first_checkpoint_auto_resume_keeps_the_model_and_the_data(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    shutil.rmtree(run / "final")
    (run / "events.jsonl").unlink()
    request = auto_resume(run, model__name="small", optim__eps=0.1)
    plan = plan_request(request, 1)
    assert plan.lines()[1:] == [
        "impossible: model.name: tiny -> small: the run directory is for the old value; a new run "
        "needs another one"
    ]
    with pytest.raises(IncompatibleCheckpoint, match="can't continue: model.name: tiny -> small"):
        plan.refuse(request)
    free = auto_resume(run, optim__eps=0.1)
    assert plan_request(free, 1).differences == ()


def test_lost_metrics_are_refused_before_anything_is_moved(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join(lines[:6]))
    with pytest.raises(CheckpointError, match="but the checkpoint was made when there were"):
        plan_request(ResumeRequest(run, step=8), num_ranks=1)
    with pytest.raises(CheckpointError, match="but the checkpoint was made when there were"):
        resume(run, step=8)
    (run / "metrics.jsonl").unlink()
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: missing; the checkpoint was made"):
        resume(run, step=8)
    assert len(list_checkpoints(run / "checkpoints")) == 3


def test_damage_of_every_checkpoint_is_an_error_with_a_hint(run: Path) -> None:
    for path in list_checkpoints(run / "checkpoints"):
        (path / "manifest.json.sha256").unlink()
    with pytest.raises(CorruptCheckpoint) as raised:
        resume(run)
    assert raised.value.message == f"{run}/checkpoints: no complete checkpoint: " + "; ".join(
        f"step-{step:08d}: manifest.json.sha256: missing" for step in (12, 8, 4)
    )
    assert raised.value.hint == "put one back from a copy, or start a new run"


def test_fewer_max_steps_than_are_trained_are_refused(run: Path) -> None:
    edit(run, train__max_steps=10)
    with pytest.raises(
        ConfigError, match="train.max_steps: 10 steps, and the checkpoint is of ste"
    ):
        resume(run)


def test_the_plan_of_a_finished_run_says_that_nothing_is_left(run: Path) -> None:
    assert "nothing is left to train" in plan_request(ResumeRequest(run), 1).lines()
    longer = plan_request(ResumeRequest(run, epochs=3), 1)
    assert "nothing is left to train" not in longer.lines()


def test_the_bundled_sample_has_a_validation_part_of_its_own(tmp_path: Path) -> None:
    given = {"output_dir": str(tmp_path / "run"), "data.val_fraction": 0.1, "model.name": "tiny"}
    with pytest.raises(ConfigError, match="data.val_fraction: 0.1, but the bundled sample has"):
        run_training(load_config(None, given))


@pytest.fixture(scope="module")
def cut_short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that `max_steps` ended after 4 of 12 steps."""
    folder = tmp_path_factory.mktemp("cut-short")
    run_training(toy_config(folder, train__max_steps=4))
    return folder / "run"


@pytest.fixture
def short(cut_short: Path, tmp_path: Path) -> Path:
    shutil.copytree(cut_short, tmp_path / "short")
    return tmp_path / "short"


@pytest.mark.parametrize("epochs", [2, 5])
def test_more_epochs_are_refused_if_max_steps_ended_the_run(short: Path, epochs: int) -> None:
    before = (short / "config.toml").read_bytes()
    with pytest.raises(ConfigError) as raised:
        resume(short, epochs=epochs)
    assert raised.value.message == (
        f"--epochs {epochs}: nothing to train: train.max_steps: 4 steps, and the checkpoint is of "
        "step 4"
    )
    assert raised.value.hint == f"`sftctl resume {short} --max-steps N` trains longer"
    assert (short / "config.toml").read_bytes() == before


def test_more_max_steps_continue_a_run_that_max_steps_ended(short: Path) -> None:
    resume(short, max_steps=6)
    assert [line["step"] for line in metrics_of(short)] == [1, 2, 3, 4, 5, 6]
    assert RunDir.open(short).config().train.max_steps == 6
    resume(short, max_steps=6)  # the same again: nothing to do


def test_more_max_steps_are_refused_if_epochs_ended_the_run(run: Path) -> None:
    with pytest.raises(ConfigError, match="--max-steps 40: nothing to train: train.epochs: 2 ep"):
        resume(run, max_steps=40)


def test_a_run_can_go_back_to_a_checkpoint_and_end_there(run: Path) -> None:
    """Nothing is trained, and nothing of the later steps is lost."""
    later = run / "checkpoints/step-00000012/shard-00001.safetensors"
    weights = later.read_bytes()
    resume(run, step=4, max_steps=4)
    assert [line["step"] for line in metrics_of(run)] == [1, 2, 3, 4]
    assert RunDir.open(run).config().train.max_steps == 4
    assert read_seal(run / "final").step == 4 and not problems_of_sealed(run / "final", 4)
    (moved,) = run.glob("**/abandoned-*/step-00000012/shard-00001.safetensors")
    assert moved.read_bytes() == weights
    with pytest.raises(ConfigError, match="--epochs 9: nothing to train"):  # no way to go back now
        resume(run, epochs=9)


def test_the_newest_manifest_is_read_once(run: Path) -> None:
    """By the system's own count of what Python opens."""
    command = [sys.executable, "-c", COUNTS_MANIFESTS, str(run)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "1"


COUNTS_MANIFESTS = """
import pathlib, sys
run, opened = pathlib.Path(sys.argv[1]), []
newest = str(run / "checkpoints" / "step-00000012" / "manifest.json")
sys.addaudithook(lambda event, args: event == "open" and opened.append(str(args[0])))
from sftctl.runs.directory import RunDir
from sftctl.train.resume import ResumeRequest
from sftctl.train.run import run_training
run_training(RunDir.open(run).config(), ResumeRequest(run))
print(opened.count(newest))
"""
