"""Runs whose loss is not finite: the error names the weights; what the summary says.

The weights become NaN after the model was loaded: a model with NaN in its files is not loaded.
"""

import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sftctl.cli.show.run import run_summary
from sftctl.config.load import load_config
from sftctl.errors import TrainingDiverged
from sftctl.jsonio import read_lines
from sftctl.model.folder.weight_values import Values
from sftctl.report.record import read_run
from sftctl.train.resume import ResumeRequest
from sftctl.train.run import run_training
from sftctl.trained.export import export_model
from tests.toys.runs import toy_config

NORM = "model.layers.1.input_layernorm.weight"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in which one weight of a norm is NaN."""
    folder = tmp_path_factory.mktemp("trained")
    run_training(toy_config(folder, train__max_steps=1, checkpoint__save_interval=0))
    weights = folder / "run/final/model.safetensors"
    tensors = load_file(weights)
    tensors[NORM][0] = torch.nan
    save_file(tensors, weights, metadata={"format": "pt"})
    return folder / "run/final"


@pytest.fixture
def poisoned(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("sftctl.model.load.values_of", lambda model: Values())
    shutil.copytree(trained, tmp_path / "poisoned")
    return tmp_path / "poisoned"


def last_event(run: Path) -> dict[str, object]:
    *_, event = read_lines(run / "events.jsonl")
    return event


def test_a_model_whose_validation_loss_is_not_finite_is_refused_before_step_1(
    tmp_path: Path, poisoned: Path
) -> None:
    config = toy_config(tmp_path, model__name=str(poisoned), data__val_fraction=0.3)
    with pytest.raises(TrainingDiverged) as caught:
        run_training(config)
    assert caught.value.message == (
        "step 0: the validation loss is nan before any update: the loss of the loaded "
        "model is not finite"
    )
    assert caught.value.hint is not None
    assert caught.value.hint.startswith(f"`sftctl inspect-ckpt {poisoned} --tensors` counts NaNs")
    event = last_event(tmp_path / "run")
    assert (event["event"], event["step"]) == ("failed", 0)
    assert (event["kind"], event["message"]) == ("TrainingDiverged", caught.value.message)


def test_without_a_validation_the_first_step_names_the_weights_and_no_example(
    tmp_path: Path, poisoned: Path
) -> None:
    with pytest.raises(TrainingDiverged) as caught:
        run_training(toy_config(tmp_path, model__name=str(poisoned)))
    assert caught.value.message == (
        "step 1 (epoch 1): the loss is nan; the weights before the step are not finite: " + NORM
    )
    assert caught.value.hint is not None and "no example is the cause" in caught.value.hint
    record = read_run(tmp_path / "run")
    assert record.status == "failed"
    assert record.events[-1]["message"] == caught.value.message


def test_a_run_that_skips_steps_counts_them(tmp_path: Path, poisoned: Path) -> None:
    config = toy_config(
        tmp_path, model__name=str(poisoned), data__val_fraction=0.3, train__on_nonfinite="skip",
        train__max_steps=3,
    )  # fmt: skip
    summary = run_training(config)
    assert (summary.status, summary.num_skipped) == ("finished", 3)
    assert summary.validation_loss is not None and math.isnan(summary.validation_loss)
    text = str(run_summary(summary))
    assert "3 steps without an update: the loss or gradient was not finite" in text
    assert "validation loss nan -> nan is not finite; look at the weights" in text

    export_model(tmp_path / "run", tmp_path / "hf", "float32")
    assert "not finite" in (tmp_path / "hf/README.md").read_text()
    again = run_training(load_config(), ResumeRequest(tmp_path / "run"))
    assert (again.status, again.num_skipped) == ("nothing_to_do", 0)
    assert again.validation_loss is not None and math.isnan(again.validation_loss)


def test_an_error_while_reporting_a_failure_does_not_hide_it(
    tmp_path: Path, poisoned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sftctl.runs.log import RunLog

    written = RunLog.event

    def event(log: RunLog, name: str, step: int, **fields: object) -> None:
        if name == "failed":
            raise OSError("disk full")
        written(log, name, step, **fields)

    monkeypatch.setattr(RunLog, "event", event)
    with pytest.raises(TrainingDiverged, match="the weights before the step"):
        run_training(toy_config(tmp_path, model__name=str(poisoned)))
    assert read_run(tmp_path / "run").status == "unfinished"
