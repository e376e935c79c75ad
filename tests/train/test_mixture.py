"""Runs on a mixture: what an epoch trains, how it resumes, what changed weights mean."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sftctl.checkpoint.directory import list_checkpoints
from sftctl.checkpoint.layout import read_manifest
from sftctl.config.load import config_to_toml, load_config
from sftctl.config.schema import DataConfig, RunConfig
from sftctl.config.sources import SourceConfig
from sftctl.data.plan import examples_digest, plan_mixture
from sftctl.data.prepare.fingerprint import PrepareOptions
from sftctl.data.prepare.prepare import prepare_files, prepare_store
from sftctl.data.sample import SAMPLE_TOKENIZER
from sftctl.errors import ConfigError, DataError, IncompatibleCheckpoint
from sftctl.model.tokenizer.tokenizer import load_tokenizer
from sftctl.report.page import report_page
from sftctl.report.record import read_run
from sftctl.runs.differences import changed_data_keys
from sftctl.runs.directory import RunDir
from sftctl.train.launch import run_on_ranks
from sftctl.train.preflight.dry_run import plan_run
from sftctl.train.preflight.inputs import open_inputs
from sftctl.train.resume import ResumeRequest, plan_request
from sftctl.train.run import run_training
from sftctl.train.stop import StopRequest
from sftctl.trained.open import open_trained
from sftctl.trained.proof_rows import texts_of
from sftctl.world import ALONE
from tests.toys.runs import events_named, metrics_of, toy_config, toy_data

WEIGHTS = {"a": 0.5, "b": 2.5, "c": 1.0}
COUNTS = {"a": 7, "b": 4, "c": 5}
PLANNED = {"a": 4, "b": 10, "c": 5}  # 19 examples: 5 steps of 4 an epoch
PER_EPOCH = 5


def mixed_config(folder: Path, name: str = "run", **overrides: object) -> RunConfig:
    """A run of three epochs on three files."""
    config = toy_config(folder, name, **{"train__epochs": 3, **overrides})
    for source, count in COUNTS.items():
        (folder / source).mkdir(exist_ok=True)
        toy_data(folder / source, count)
    sources = [
        SourceConfig(name=source, path=str(folder / source / "toy.jsonl"), weight=weight)
        for source, weight in WEIGHTS.items()
    ]
    return replace(config, data=replace(config.data, path=None, sources=tuple(sources)))


def set_weight(run: Path, name: str, weight: float) -> None:
    """Edit the weight of a source in the run's config.toml."""
    config = RunDir.open(run).config()
    sources = [
        replace(s, weight=weight) if s.name == name else s for s in config.data.sources or ()
    ]
    config = replace(config, data=replace(config.data, sources=tuple(sources)))
    (run / "config.toml").write_text(config_to_toml(config))


def resume(run: Path, **request: Any) -> None:
    run_training(RunDir.open(run).config(), ResumeRequest(run, **request))


def digests(run: Path) -> list[int]:
    return [line["examples_digest"] for line in metrics_of(run)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the mixture."""
    config = mixed_config(tmp_path_factory.mktemp("mixture"))
    run_training(config)
    assert config.output_dir is not None
    return config.output_dir


def test_the_run_trains_the_plan_and_resumes_it_on_other_ranks(
    trained: Path, tmp_path: Path
) -> None:
    inputs = open_inputs(RunDir.open(trained).config(), ALONE, StopRequest())
    assert inputs.mixture is not None
    assert {s.name: s.num_planned for s in inputs.mixture.sources} == PLANNED
    plans = [plan_mixture(inputs.mixture, 0, epoch, 4) for epoch in range(3)]
    assert digests(trained) == [
        examples_digest(plan[s]) for plan in plans for s in range(len(plan))
    ]
    run = tmp_path / "copy"
    shutil.copytree(trained, run)
    shutil.rmtree(run / "final")
    config = RunDir.open(run).config()
    run_on_ranks(2, run_training, config, ResumeRequest(run, step=7))
    assert digests(run) == digests(trained)


def test_planned_and_trained_agree_to_the_row(trained: Path) -> None:
    plan = plan_request(ResumeRequest(trained), 1)
    assert {s.name: s.planned_examples for s in plan.sources} == {
        name: 3 * planned for name, planned in PLANNED.items()
    }
    lines = metrics_of(trained)
    for source in plan.sources:
        parts = [line["sources"][source.name] for line in lines]
        for key in ("examples", "tokens", "target_tokens"):
            in_metrics = sum(part[f"num_{key}"] for part in parts)
            planned, done = (getattr(source, f"{when}_{key}") for when in ("planned", "trained"))
            assert in_metrics == planned == done
    half = plan_request(ResumeRequest(trained, step=7), 1)
    assert [s.planned_examples for s in half.sources] == [s.planned_examples for s in plan.sources]
    assert sum(s.trained_examples for s in half.sources) == 19 + 8
    assert any(line.startswith("source a: ") for line in half.lines())


def test_the_parts_of_a_step_add_up_to_it(trained: Path) -> None:
    for line in metrics_of(trained):
        parts = line["sources"].values()
        for key in ("num_tokens", "num_target_tokens"):
            assert sum(part[key] for part in parts) == line[key]
        losses = [part["loss"] * part["num_target_tokens"] for part in parts if part["loss"]]
        assert sum(losses) / line["num_target_tokens"] == pytest.approx(line["loss"], rel=1e-6)
        assert all(0 <= part["token_accuracy"] <= 1 for part in parts if part["num_examples"])


def test_the_report_knows_all_stores(trained: Path) -> None:
    record = read_run(trained)
    page = report_page(record)
    assert "Loss of each source" in page and "not shown" not in page
    assert record.remarks == []
    assert "Token accuracy of each source" in page
    assert {*record.of_sources("loss")} == {*record.of_sources("token_accuracy")} == {*"abc"}
    assert f"{sum(COUNTS.values())}" in page


def test_the_sources_of_one_store_have_weights_too(tmp_path: Path) -> None:
    files = []
    for folder in (tmp_path / "x", tmp_path / "y"):
        folder.mkdir()
        files.append(toy_data(folder, 5))
    store = tmp_path / "store"
    options = PrepareOptions(names=("x", "y"))
    config = load_config(None)
    manifest = prepare_files(files, [], store, config, options=options).manifest
    assert manifest.examples_by_source() == {"x": 5, "y": 5}
    config = toy_config(tmp_path, data__path=str(store))
    unweighted = open_inputs(config, ALONE, StopRequest())
    assert unweighted.mixture is not None and unweighted.mixture.weights == {"x": 1.0, "y": 1.0}
    data = replace(config.data, sources=(SourceConfig(name="y", weight=0.4),))
    plan = plan_run(replace(config, data=data))
    assert [(s.name, s.weight, s.planned_examples) for s in plan.sources] == [
        ("x", 1.0, 10),
        ("y", 0.4, 4),
    ]
    assert (plan.steps_per_epoch, plan.total_steps) == (2, 4)
    renamed = prepare_files(files, [], store, load_config(None), options=PrepareOptions())
    assert renamed.manifest.examples_by_source() == {} and not renamed.is_reused


def test_a_weight_that_trains_nothing_is_a_warning(tmp_path: Path) -> None:
    config = mixed_config(tmp_path, train__max_steps=1)
    weights = {"a": 0.07, "b": 0.0, "c": 1.0}  # of 7, 4 and 5 examples; 0 is meant
    sources = [replace(one, weight=weights[one.name]) for one in config.data.sources or ()]
    config = replace(config, data=replace(config.data, sources=tuple(sources)))
    text = (
        "source a: weight 0.07 of 7 examples is less than one in an epoch: it is never trained; "
        "weight 0.14 trains one in each epoch, weight 0 none"
    )
    assert [str(one) for one in plan_run(config).findings if "source" in one.subject] == [text]
    assert [one["message"] for one in events_named(run_training(config).run_dir, "warning")] == [
        text
    ]


def test_weights_changed_between_two_epochs_hold_for_the_next_one(
    trained: Path, tmp_path: Path
) -> None:
    run = tmp_path / "copy"
    shutil.copytree(trained, run)
    set_weight(run, "b", 0.5)
    plan = plan_request(ResumeRequest(run, step=PER_EPOCH), 1)
    (found,) = [d for d in plan.differences if d.key == "data.sources"]
    assert str(found) == (
        "data.sources: a=0.5, b=2.5, c=1 -> a=0.5, b=0.5, c=1: "
        "epoch 2 and later ones have the new weights, 3 steps per epoch, 11 steps in all; "
        "learning rate of step 6 0.000689 -> 0.000486"
    )
    resume(run, step=PER_EPOCH)
    lines = metrics_of(run)
    assert [line["epoch"] for line in lines] == [0] * 5 + [1] * 3 + [2] * 3
    assert digests(run)[:5] == digests(trained)[:5]


def test_other_sources_are_named_by_their_weights(trained: Path) -> None:
    run = RunDir(trained)
    config, manifest = run.resolved_config(), read_manifest(list_checkpoints(run.checkpoints)[-1])
    fewer = replace(config, data=replace(config.data, sources=(config.data.sources or ())[:-1]))
    (change,) = changed_data_keys(manifest, fewer)
    assert change == "data.sources a=0.5, b=2.5, c=1 -> a=0.5, b=2.5"


def test_new_weights_in_an_epoch_have_to_be_allowed_and_begin_it_again(
    trained: Path, tmp_path: Path
) -> None:
    run = tmp_path / "copy"
    shutil.copytree(trained, run)
    set_weight(run, "b", 0.5)
    with pytest.raises(IncompatibleCheckpoint, match="epoch 2 begins again with the new weights"):
        resume(run, step=PER_EPOCH + 2)
    assert digests(run) == digests(trained)
    resume(run, step=PER_EPOCH + 2, allow=frozenset({"data.sources"}))
    assert [line["epoch"] for line in metrics_of(run)] == [0] * 5 + [1] * 5 + [2] * 3
    assert events_named(run, "resumed")[0]["total_steps"] == 13
    resume(run, step=11)  # the new weights are the run's own now
    assert len(digests(run)) == 13


def test_a_weight_for_a_source_that_the_data_does_not_have(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    data = replace(config.data, sources=(SourceConfig(name="x", weight=2.0),))
    with pytest.raises(ConfigError, match=r"toy.jsonl has no source x: its sources have no names"):
        run_training(replace(config, data=data))
    assert not (tmp_path / "run").exists()


def test_stores_of_different_tokenizers_are_not_mixed(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(SAMPLE_TOKENIZER))
    tokenizer.hf.add_tokens(["<other>"])
    tokenizer.hf.save_pretrained(tmp_path / "tokenizer")
    other = load_tokenizer(str(tmp_path / "tokenizer"))
    rows = toy_data(tmp_path, 3)
    sources = []
    for name, each in {"one": load_tokenizer(str(SAMPLE_TOKENIZER)), "two": other}.items():
        prepare_store([rows], tmp_path / name, each, DataConfig())
        sources.append(SourceConfig(name=name, path=str(tmp_path / name)))
    config = toy_config(tmp_path)
    data = replace(config.data, path=None, sources=tuple(sources))
    with pytest.raises(DataError, match=r"one and .*two were prepared with different tokenizers"):
        run_training(replace(config, data=data))


def test_an_export_is_proved_on_the_rows_of_the_sources(trained: Path) -> None:
    texts = texts_of(open_trained(trained))
    assert len(texts) == sum(COUNTS.values()) == 16
    assert all("Count to" in text for text in texts)
