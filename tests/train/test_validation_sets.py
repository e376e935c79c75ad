"""Several validation sets: the numbers of each, on any number of ranks, and the best step."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from sftctl import jsonio
from sftctl.checkpoint.directory import list_checkpoints, ranked_checkpoints
from sftctl.checkpoint.layout import read_manifest
from sftctl.config.evaluation import Goal
from sftctl.config.load import config_to_toml, load_config
from sftctl.config.schema import RunConfig
from sftctl.data.prepare.prepare import prepare_files
from sftctl.errors import ConfigError, DataError, SftctlError
from sftctl.report.page import report_page
from sftctl.report.record import read_run
from sftctl.runs.choosing import with_evaluation
from sftctl.runs.directory import RunDir
from sftctl.train.launch import run_on_ranks
from sftctl.train.resume import ResumeRequest, plan_request
from sftctl.train.run import run_training
from tests.toys.runs import events_named, toy_config


def rows(path: Path, word: str, count: int = 6) -> str:
    """A file of short conversations."""
    found = [
        {
            "messages": [
                {"role": "user", "content": f"Say {word} {n} times."},
                {"role": "assistant", "content": f"{word} " * n},
            ]
        }
        for n in range(1, count + 1)
    ]
    path.write_bytes(b"".join(jsonio.dump_line(row) for row in found))
    return str(path)


def with_sets(folder: Path, name: str = "run", **keys: object) -> RunConfig:
    """Three sets: a part of the data, a file, and a prepared store."""
    store = folder / "store"
    if not store.exists():
        prepare_files([Path(rows(folder / "zeros.jsonl", "zero"))], [], store, RunConfig())
    sets = [
        {"name": "held-out", "fraction": 0.3},
        {"name": "ones", "path": rows(folder / "ones.jsonl", "one", 9)},
        {"name": "zeros", "path": str(store)},
    ]
    values: dict[str, Any] = {
        "train__max_steps": 2,
        "train__eval_interval": 1,
        "evaluation__metrics": ["tests.toys.judging:length_ratio"],
        "evaluation__num_prompts": 3,
        "evaluation__max_new_tokens": 4,
    } | keys
    return toy_config(folder, name, evaluation__sets=sets, **values)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with three sets, in `run`."""
    path = tmp_path_factory.mktemp("sets")
    run_training(with_sets(path, train__reduction="exact"))
    return path


def test_each_set_is_measured_and_the_loss_is_the_mean_over_all_target_tokens(folder: Path) -> None:
    for event in events_named(folder / "run", "evaluation"):
        sets = event["sets"]
        assert list(sets) == ["held-out", "ones", "zeros"]
        for values in [*sets.values(), event | {"loss": event["validation_loss"]}]:
            assert values["perplexity"] == pytest.approx(math.exp(values["loss"]))
            assert 0 <= values["token_accuracy"] <= 1
            assert 0 < values["entropy"] <= math.log(2048) + 1e-4
        counts = {name: values["num_target_tokens"] for name, values in sets.items()}
        assert sum(counts.values()) == event["num_target_tokens"] > max(counts.values())
        mean = sum(sets[name]["loss"] * count for name, count in counts.items())
        assert event["validation_loss"] == pytest.approx(mean / event["num_target_tokens"])
    first = events_named(folder / "run", "evaluation")[0]
    assert first["entropy"] == pytest.approx(math.log(2048), rel=0.02)  # random weights


def test_the_report_has_a_chart_of_each_number_of_the_sets(folder: Path) -> None:
    page = report_page(read_run(folder / "run"))
    for name in ("Loss", "Perplexity", "Token accuracy", "Entropy"):
        assert f"{name} of each validation set" in page


def test_a_resume_on_two_ranks_measures_the_same_bits(folder: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(folder / "run", folder / name)
    config = RunDir.open(folder / "one").config()
    run_training(config, ResumeRequest(folder / "one", max_steps=3))
    config = RunDir.open(folder / "two").config()
    run_on_ranks(2, run_training, config, ResumeRequest(folder / "two", max_steps=3))
    one, two = (events_named(folder / name, "evaluation")[-1] for name in ("one", "two"))
    assert one | {"time": 0} == two | {"time": 0} and one["step"] == 3


def test_the_fraction_is_held_out_of_the_training_data(folder: Path) -> None:
    config = RunDir.open(folder / "run").config()
    assert config.data.val_fraction == 0.3
    assert load_config(None, {"data.val_fraction": 0.3}).data.val_fraction == 0.3
    again = folder / "again.toml"
    again.write_text(config_to_toml(config))
    assert load_config(again).evaluation == config.evaluation


@pytest.mark.parametrize("best", ["ones.loss", "max ones.entropy", "token_accuracy"])
def test_the_best_step_is_chosen_by_the_named_metric(folder: Path, best: str, request: Any) -> None:
    name = f"best-{request.node.callspec.id.replace(' ', '-')}"
    keys = {"train__max_steps": 4, "evaluation__best": best, "optim__learning_rate": 0.06}
    summary = run_training(with_sets(folder, name, checkpoint__keep=1, **keys))
    goal = Goal.parsed(best)
    sign = 1 if goal.direction == "min" else -1
    found = []
    for event in events_named(folder / name, "evaluation"):
        values = event if goal.set_name is None else event["sets"][goal.set_name]
        if event["step"] > 0:
            found.append((sign * values[goal.metric], event["step"]))
    assert (summary.best_step, summary.final_step) == (min(found)[1], min(found)[1])
    assert summary.best == sign * min(found)[0]
    (first, *_) = ranked_checkpoints(folder / name / "checkpoints", str(goal))
    assert read_manifest(first).step == summary.best_step
    last = read_manifest(list_checkpoints(folder / name / "checkpoints")[-1]).validation
    assert last is not None and last["goal"] == str(goal)


def test_a_resume_evaluates_the_same_sets_and_another_goal_begins_the_choice_again(
    folder: Path,
) -> None:
    run = folder / "run"
    config = load_config(
        run / "config.toml", {"output_dir": str(run), "evaluation.best": "zeros.loss"}
    )
    RunDir(run).write_config(config)
    summary = run_training(config, ResumeRequest(run, max_steps=3))
    assert (summary.best_step, summary.best_of) == (3, "loss of zeros")
    assert list(events_named(run, "evaluation")[-1]["sets"]) == ["held-out", "ones", "zeros"]


def test_the_plan_of_a_resume_names_a_changed_file_of_a_set(folder: Path) -> None:
    run = Path(shutil.copytree(folder / "run", folder / "changed"))
    kept = (folder / "ones.jsonl").read_bytes()
    rows(folder / "ones.jsonl", "eleven", 9)
    try:
        plan = plan_request(ResumeRequest(run), 1)
    finally:
        (folder / "ones.jsonl").write_bytes(kept)
    (text,) = [str(one) for one in plan.differences if "evaluation" in one.key]
    assert text.startswith("evaluation.sets: ones: ") and text.endswith("are of other rows")
    assert not plan_request(ResumeRequest(run), 1).differences


def test_another_goal_forgets_the_old_values() -> None:
    goal = Goal("a", "token_accuracy", "max")
    seen = with_evaluation(None, 1, 5.0, 0.0)
    seen = with_evaluation(seen, 2, 4.0, 0.0, goal, 0.5)
    seen = with_evaluation(seen, 3, 3.0, 0.0, goal, 0.4)
    assert (seen["best"], seen["best_step"], seen["waited"], seen["last"]) == (0.5, 2, 1, 3.0)
    seen = with_evaluation(seen, 4, 9.0, 0.0)
    assert (seen["best"], seen["best_step"], "goal" in seen, "value" in seen) == (
        9.0,
        4,
        False,
        False,
    )


SET = {"name": "a", "path": "a.jsonl"}
BAD: dict[str, tuple[dict[str, object], str]] = {
    "two of one name": ({"evaluation.sets": [SET, SET]}, "have the name a"),
    "no path": ({"evaluation.sets": [{"name": "a"}]}, "a: needs either a path or"),
    "both": ({"evaluation.sets": [SET | {"fraction": 0.1}]}, "a: needs either a path or"),
    "two fractions": (
        {"evaluation.sets": [{"name": n, "fraction": 0.1} for n in "ab"]}, "two sets have"
    ),
    "no such metric": ({"evaluation.best": "chat.bleu"}, "bleu is not measured; there are loss"),
    "no direction": ({"evaluation.best": "entropy"}, "evaluation.best: entropy: min or max?"),
    "a wrong direction": ({"evaluation.best": "least loss"}, "least loss: min or max?"),
}  # fmt: skip


@pytest.mark.parametrize(("values", "message"), BAD.values(), ids=BAD)
def test_settings_that_mean_nothing_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match="evaluation") as raised:
        load_config(None, values)
    assert message in raised.value.message and raised.value.hint


def test_sets_that_can_not_be_opened_are_named(tmp_path: Path) -> None:
    rows(tmp_path / "a.jsonl", "a")
    cases: list[tuple[dict[str, Any], type[SftctlError], str]] = [
        ({"evaluation.sets": [{"name": "a", "path": str(tmp_path / "gone.jsonl")}]}, DataError,
         "evaluation.sets: a: "),
        ({"evaluation.best": "chat.loss", "data.val_fraction": 0.3}, ConfigError,
         "there is no validation set chat"),
        ({"evaluation.sets": [{"name": "validation", "path": str(tmp_path / "a.jsonl")}],
          "data.val_fraction": 0.3}, ConfigError, "name of the data's own validation part"),
        ({"evaluation.sets": [{"name": "a", "fraction": 0.2}], "data.val_fraction": 0.3},
         ConfigError, "the data is split once"),
    ]  # fmt: skip
    for values, kind, message in cases:
        config = toy_config(tmp_path, **{k.replace(".", "__"): v for k, v in values.items()})
        with pytest.raises(kind) as raised:
            run_training(config)
        assert message in raised.value.message
    assert not (tmp_path / "run").exists()
