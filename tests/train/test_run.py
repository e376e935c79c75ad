"""A run from its first step to its final model."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from sftctl import jsonio
from sftctl.checkpoint.directory import list_checkpoints
from sftctl.checkpoint.layout import manifest_bytes, manifest_hash_line, read_manifest
from sftctl.config.load import load_config
from sftctl.config.schedule import get_lr
from sftctl.data.plan import examples_digest
from sftctl.errors import CheckpointError, ConfigError, DataError
from sftctl.train.preflight.dry_run import plan_run
from sftctl.train.resume import ResumePlan, ResumeRequest
from sftctl.train.run import run_training
from tests.toys.runs import (
    NUM_EXAMPLES,
    STEPS_PER_EPOCH,
    events_of,
    half_made,
    metrics_of,
    toy_config,
)


def test_metrics_have_a_line_for_every_step_and_every_example_is_trained_once_an_epoch(
    tmp_path: Path,
) -> None:
    summary = run_training(toy_config(tmp_path, checkpoint__save_interval=0))
    lines = metrics_of(tmp_path / "run")
    assert summary.status == "finished"
    assert [line["step"] for line in lines] == list(range(1, 2 * STEPS_PER_EPOCH + 1))
    assert [line["epoch"] for line in lines] == [0] * STEPS_PER_EPOCH + [1] * STEPS_PER_EPOCH
    whole = examples_digest(range(NUM_EXAMPLES))
    for epoch in (0, 1):
        digests = [line["examples_digest"] for line in lines if line["epoch"] == epoch]
        assert sum(digests) % 2**64 == whole
    optim = load_config(tmp_path / "run" / "config.toml").optim
    assert [line["learning_rate"] for line in lines] == [
        get_lr(step, len(lines), optim) for step in range(1, len(lines) + 1)
    ]


def test_a_run_directory_holds_all_promised_files(tmp_path: Path) -> None:
    run_training(toy_config(tmp_path, checkpoint__save_interval=5, checkpoint__keep=2))
    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} - {".lock"} == {
        "config.toml", "run.json", "model", "metrics.jsonl", "events.jsonl", "checkpoints", "final"
    }  # fmt: skip
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "step-00000010",
        "step-00000012",
    ]
    manifest = read_manifest(run / "checkpoints" / "step-00000012")
    assert (manifest.epoch, manifest.step_in_epoch) == (2, 0)
    assert manifest.examples_seen == 2 * NUM_EXAMPLES
    assert manifest.metrics_bytes == (run / "metrics.jsonl").stat().st_size
    assert events_of(run) == ["started", "data", "saved", "saved", "saved", "finished"]


def test_the_resolved_configuration_trains_the_same_weights_again(tmp_path: Path) -> None:
    run_training(toy_config(tmp_path, checkpoint__save_interval=0))
    again = load_config(tmp_path / "run" / "config.toml", {"output_dir": str(tmp_path / "again")})
    run_training(again)
    first, second = (load_file(tmp_path / n / "final/model.safetensors") for n in ("run", "again"))
    assert all(first[name].equal(second[name]) for name in first)


def test_validation_happens_at_the_start_at_every_interval_and_at_the_end(tmp_path: Path) -> None:
    config = toy_config(
        tmp_path, data__val_fraction=0.3, train__eval_interval=3, checkpoint__save_interval=0
    )
    summary = run_training(config)
    events = list(jsonio.read_lines(tmp_path / "run" / "events.jsonl"))
    evaluations = [event for event in events if event["event"] == "evaluation"]
    steps = [event["step"] for event in evaluations]
    assert steps[0] == 0 and steps[-1] == summary.total_steps
    assert steps[1:-1] == [s for s in range(3, summary.total_steps, 3)]
    assert all(event["num_target_tokens"] > 0 for event in evaluations)
    assert summary.validation_loss == evaluations[-1]["validation_loss"]
    assert summary.validation_loss is not None and summary.first_validation_loss is not None
    assert summary.validation_loss < summary.first_validation_loss


def test_the_bundled_sample_and_the_default_model_learn(tmp_path: Path) -> None:
    config = load_config(None, {"output_dir": str(tmp_path / "run"), "train.max_steps": 6})
    summary = run_training(config)
    assert summary.validation_loss is not None and summary.first_validation_loss is not None
    assert summary.validation_loss < 0.95 * summary.first_validation_loss
    assert summary.first_validation_loss == pytest.approx(math.log(2048), rel=0.05)


def test_an_existing_output_directory_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").write_text("precious")
    with pytest.raises(ConfigError, match="run: exists already"):
        run_training(toy_config(tmp_path))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine"]


def test_a_mistake_in_the_data_leaves_no_run_directory(tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"messages": [{"role": "user", "content": "alone"}]}\n')
    with pytest.raises(DataError, match="no row is left to train on"):
        run_training(toy_config(tmp_path, data__path=str(bad)))
    assert not (tmp_path / "run").exists()


def test_sequences_beyond_the_models_positions_are_refused(tmp_path: Path) -> None:
    data = tmp_path / "long.jsonl"
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "word " * 6000}]
    data.write_bytes(jsonio.dump_line({"messages": turns}))
    config = toy_config(tmp_path, data__path=str(data), data__max_seq_len=8192)
    with pytest.raises(ConfigError, match="is beyond the model's 4096 positions"):
        run_training(config)
    assert not (tmp_path / "run").exists()


def test_a_last_validation_that_is_missing_is_made_by_a_resume(tmp_path: Path) -> None:
    config = toy_config(
        tmp_path, data__val_fraction=0.3, train__max_steps=2, checkpoint__save_interval=0
    )
    run = run_training(config).run_dir
    (path,) = list_checkpoints(run / "checkpoints")
    manifest = read_manifest(path)
    assert manifest.validation is not None
    data = manifest_bytes(replace(manifest, validation=manifest.validation | {"step": 0}))
    (path / "manifest.json").write_bytes(data)
    (path / "manifest.json.sha256").write_bytes(manifest_hash_line(data))
    shutil.rmtree(run / "final")  # it is written after the last validation
    summary = run_training(config, ResumeRequest(run))
    assert (summary.status, summary.num_tokens, summary.validation_step) == ("finished", 0, 2)
    assert summary.validation_loss == manifest.validation["last"]
    assert events_of(run)[-3:] == ["resumed", "evaluation", "finished"]


def test_a_final_model_that_can_not_be_written_is_one_error_and_a_resume_writes_it(
    tmp_path: Path,
) -> None:
    config = toy_config(tmp_path, train__max_steps=1)
    run = run_training(config).run_dir
    shutil.rmtree(run / "final")

    def put_a_file(_plan: ResumePlan, _allow: frozenset[str]) -> None:
        (run / "final").write_text("in the way")

    with pytest.raises(CheckpointError, match=r"run/final: can't be written: ") as raised:
        run_training(config, ResumeRequest(run, announce=put_a_file))
    assert raised.value.exit_code == 4
    assert events_of(run)[-1] == "failed"
    assert half_made(run) == set()
    (run / "final").unlink()
    assert run_training(config, ResumeRequest(run)).status == "finished"
    assert (run / "final/model.safetensors").is_file()


def test_a_dry_run_plans_the_steps_and_writes_nothing(tmp_path: Path) -> None:
    plan = plan_run(toy_config(tmp_path))
    assert (plan.num_examples, plan.steps_per_epoch, plan.total_steps) == (NUM_EXAMPLES, 6, 12)
    assert plan.learning_rates[0][0] == 1
    assert plan.learning_rates[-1] == pytest.approx((12, 1e-4))
    assert not (tmp_path / "run").exists()
