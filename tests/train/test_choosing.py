"""A run that chooses: its best step, its early end, `final/`; and the same choices after a kill."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
from safetensors.torch import load_file

from sftctl.checkpoint.directory import list_checkpoints, ranked_checkpoints
from sftctl.checkpoint.layout import read_manifest, step_of
from sftctl.checkpoint.sealed import read_seal
from sftctl.config.load import load_config
from sftctl.data.loading.loader import evaluation_rounds
from sftctl.errors import ConfigError
from sftctl.inspection.inspect import inspect_path
from sftctl.metrics import RunSummary
from sftctl.runs.card import model_card
from sftctl.runs.directory import RunDir
from sftctl.train.resume import ResumeRequest, plan_request
from sftctl.train.run import run_training
from sftctl.trained.open import open_trained
from tests.toys.runs import (
    assert_same_end,
    assert_same_tensors,
    events_named,
    events_of,
    signal_in_call,
    stored_tensors,
    toy_config,
)
from tests.toys.torture.processes import forked, train

BEST, END, LAST = 3, 5, 12
# The learning rate is too high: the validation loss rises after step 3. Step 3 is off the interval.
SETTINGS: dict[str, Any] = {
    "data__val_fraction": 0.3,
    "train__eval_interval": 1,
    "train__max_steps": LAST,
    "train__epochs": 6,
    "train__patience": 2,
    "optim__learning_rate": 0.06,
    "optim__schedule": "constant",
    "checkpoint__save_interval": 4,
    "checkpoint__keep": 1,
}
WHY = "train.patience: no better validation loss in 2 evaluations; the best is 2."


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunSummary]:
    """A run that its patience ended."""
    folder = tmp_path_factory.mktemp("whole")
    return folder / "run", run_training(toy_config(folder, **SETTINGS))


def copied(run: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run, folder / "copy"))


def steps_in(run: Path) -> list[int | None]:
    return [step_of(path.name) for path in list_checkpoints(run / "checkpoints")]


def resume(run: Path, **keys: object) -> RunSummary:
    """Resume a run whose config.toml was edited."""
    if keys:
        edited = {key.replace("__", "."): value for key, value in keys.items()}
        config = load_config(run / "config.toml", {"output_dir": str(run)} | edited)
        RunDir(run).write_config(config)
    return run_training(RunDir.open(run).config(), ResumeRequest(run))


def test_patience_ends_the_run_and_final_is_the_best_step(whole: tuple[Path, RunSummary]) -> None:
    run, summary = whole
    assert (summary.status, summary.step, summary.total_steps) == ("finished", END, LAST)
    assert (summary.best_step, summary.final_step) == (BEST, BEST)
    assert summary.ended_early is not None and summary.ended_early.startswith(WHY)
    assert events_of(run)[-2:] == ["ended_early", "finished"]
    assert steps_in(run) == [BEST, END]  # the best besides the newest
    weights = load_file(run / "final/model.safetensors")
    best = stored_tensors(run / "checkpoints" / f"step-{BEST:08d}")
    assert_same_tensors(weights, {name: best[f"model.{name}"] for name in weights})
    last = events_named(run, "evaluation")[-1]
    assert (last["best_step"], last["waited"], last["patience"]) == (BEST, 2, 2)
    assert load_config(run / "config.toml").train.final == "best"


def test_card_and_inspection_say_which_step_it_is(whole: tuple[Path, RunSummary]) -> None:
    run, _ = whole
    trained = open_trained(run)
    assert trained.manifest is not None and trained.manifest.step == BEST
    card = model_card(RunDir.open(run), trained.manifest, "float32")
    assert "best validation loss, of step 3; the run trained to step 5" in card
    found = inspect_path(run)
    assert found.final is not None
    assert (found.final["step"], found.final["choice"], found.final["problems"]) == (
        BEST, "best", []
    )  # fmt: skip
    assert any(note.startswith(f"finished: {WHY}") for note in found.notes)
    assert found.advice is not None and "raise train.patience" in found.advice


def test_a_resume_trains_nothing_unless_patience_is_raised(
    whole: tuple[Path, RunSummary], tmp_path: Path
) -> None:
    run = copied(whole[0], tmp_path)
    again = resume(run)
    assert (again.status, again.num_tokens, again.final_step) == ("nothing_to_do", 0, BEST)
    assert again.ended_early is not None and again.ended_early.startswith(WHY)
    plan = plan_request(ResumeRequest(run), 1)
    assert plan.nothing_left is not None and WHY in plan.nothing_left
    with pytest.raises(ConfigError, match=rf"--epochs 9: nothing to train: {WHY}") as raised:
        plan_request(ResumeRequest(run, epochs=9), 1)
    assert raised.value.hint == "raise train.patience in the run's config.toml to train on"
    longer = resume(run, train__patience=50)
    assert (longer.step, longer.ended_early) == (LAST, None)
    expected = toy_config(tmp_path, "longer", **SETTINGS | {"train__patience": 50})
    assert run_training(expected).final_step == longer.final_step
    assert_same_end(run, tmp_path / "longer")


def test_another_choice_writes_another_final_model(
    whole: tuple[Path, RunSummary], tmp_path: Path
) -> None:
    run = copied(whole[0], tmp_path)
    assert resume(run, train__final="last").final_step == END
    assert read_seal(run / "final").choice == "last"
    assert resume(run, train__final="best").final_step == BEST
    assert [event["step"] for event in events_named(run, "ended_early")] == [END]
    best = run / "final/model.safetensors"
    assert best.read_bytes() == (whole[0] / "final/model.safetensors").read_bytes()


def test_a_missing_best_checkpoint_is_a_warning_and_the_next_best_is_used(
    whole: tuple[Path, RunSummary], tmp_path: Path
) -> None:
    run = copied(whole[0], tmp_path)
    shard = next((run / "checkpoints" / f"step-{BEST:08d}").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    shutil.rmtree(run / "final")
    assert resume(run).final_step == END
    (warning,) = events_named(run, "warning")
    assert warning["message"].startswith(f"final/ is of step {END}: damaged: step-{BEST:08d}: ")


def test_a_run_without_validation_keeps_its_last_step(tmp_path: Path) -> None:
    config = toy_config(tmp_path, train__max_steps=1)
    assert run_training(config).final_step == 1
    assert load_config(tmp_path / "run/config.toml").train.final == "last"
    with pytest.raises(ConfigError, match="train.patience: 2, but the data has no validation set"):
        resume(tmp_path / "run", train__patience=2, train__eval_interval=1)


def test_the_best_are_kept_besides_the_newest(tmp_path: Path) -> None:
    keys = SETTINGS | {"checkpoint__keep_best": 2, "checkpoint__save_interval": 1}
    run = run_training(toy_config(tmp_path, **keys)).run_dir
    ranked = [read_manifest(path) for path in ranked_checkpoints(run / "checkpoints")]
    losses = {e["step"]: e["validation_loss"] for e in events_named(run, "evaluation")}
    best = sorted((loss, step) for step, loss in losses.items() if step > 0)[:2]
    assert [one.step for one in ranked[:2]] == [step for _, step in best]
    assert steps_in(run) == sorted({END, *(step for _, step in best)})


# Where the process dies: the call that it does not survive.
EVALUATION = "sftctl.train.engine.evaluate.evaluate"
KILLS = {
    "in the evaluation of the new best": (EVALUATION, BEST + 1),
    "before the new best is saved": ("sftctl.checkpoint.background.BackgroundSaver.start", BEST),
    "in the save of the new best": ("sftctl.checkpoint.background.save_checkpoint", BEST),
    "before the old best is deleted": ("sftctl.checkpoint.background.retire", BEST),
    "while the old best is deleted": ("sftctl.disk.Disk.remove_tree", 1),
    "in the evaluation that ends the run": (EVALUATION, END + 1),
    "before final/ is written": ("sftctl.train.final.save_pretrained", 1),
}


def train_until_killed(folder: Path, place: str, call: int) -> None:
    """Train; the process ends at once in call number `call` of `place`."""
    with pytest.MonkeyPatch.context() as patch:
        calls = iter(range(1, 1000))
        function: Callable[..., Any] = resolve_name(place)

        def dies(*arguments: object, **keywords: object) -> object:
            if next(calls) == call:
                os._exit(9)
            return function(*arguments, **keywords)

        patch.setattr(place, dies)
        run_training(toy_config(folder, **SETTINGS))


@pytest.mark.parametrize("place", KILLS)
def test_a_run_that_was_killed_makes_the_same_choices(
    whole: tuple[Path, RunSummary], tmp_path: Path, place: str
) -> None:
    with forked(train_until_killed, tmp_path, *KILLS[place]) as ranks:
        assert ranks.ended() == [9], ranks.printed()
    run = tmp_path / "run"
    with forked(train, RunDir.open(run).config(), ResumeRequest(run)) as ranks:
        assert ranks.ended() == [0], ranks.printed()
    assert_same_end(run, whole[0])
    assert [event["step"] for event in events_named(run, "ended_early")] == [END]
    assert steps_in(run) == [BEST, END]
    seal = read_seal(run / "final")
    assert replace(seal, run_id=None) == replace(read_seal(whole[0] / "final"), run_id=None)


def test_a_signal_in_the_evaluation_of_the_best_step_changes_no_choice(
    whole: tuple[Path, RunSummary], tmp_path: Path
) -> None:
    blocks = "sftctl.train.engine.evaluate.evaluation_rounds"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, signal_in_call(BEST + 1, evaluation_rounds))
        stopped = run_training(toy_config(tmp_path, **SETTINGS))
    assert (stopped.status, stopped.step, stopped.best_step) == ("stopped", BEST, BEST - 1)
    assert resume(tmp_path / "run").final_step == BEST
    assert_same_end(tmp_path / "run", whole[0])
