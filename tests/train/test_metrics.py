"""Metrics by generation: rows, kept answers, the choice of the best step, and failures."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from sftctl import jsonio
from sftctl.config.evaluation import Goal
from sftctl.errors import ConfigError, DataError
from sftctl.runs.answers import read_answers
from sftctl.runs.choosing import with_evaluation
from sftctl.runs.directory import RunDir
from sftctl.tracking.lines import event_line
from sftctl.tracking.values import evaluation_values
from sftctl.train.answers import judge as judging
from sftctl.train.answers.judge import judge
from sftctl.train.opening import restored_session
from sftctl.train.resume import ResumeRequest
from sftctl.train.run import run_training
from sftctl.train.stop import StopRequest
from sftctl.world import ALONE
from tests.toys.metrics import Memory
from tests.toys.runs import assert_same_end, events_named, metrics_of, same_run, toy_config

HERE = "tests.toys.judging"
SETTINGS: dict[str, Any] = {
    "data__val_fraction": 0.4,
    "train__eval_interval": 2,
    "train__max_steps": 4,
    "evaluation__num_prompts": 5,
    "evaluation__max_new_tokens": 6,
    "evaluation__metrics": [f"{HERE}:length_ratio"],
    "evaluation__best": "max validation.length_ratio",
}


def train(folder: Path, name: str = "run", **settings: Any) -> Path:
    return run_training(toy_config(folder, name, **SETTINGS | settings)).run_dir


def lines_of(run: Path, step: int) -> list[dict[str, Any]]:
    return [*read_answers(run, [step])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is judged, in `run`."""
    folder = tmp_path_factory.mktemp("judged")
    train(folder)
    return folder


def test_the_metric_is_a_number_of_the_set_and_each_answer_is_kept(folder: Path) -> None:
    evaluations = events_named(folder / "run", "evaluation")
    assert [one["step"] for one in evaluations] == [0, 2, 4]
    for event in evaluations:
        lines = lines_of(folder / "run", event["step"])
        assert [line["number"] for line in lines] == [*range(5)]
        for line in lines:
            assert line["set"] == "validation" and line["messages"][-1]["role"] == "user"
            assert line["messages"][0]["content"].startswith("Count to")
            assert line["reference"].startswith("1")
            assert line["length_ratio"] == len(line["answer"]) / len(line["reference"])
        mean = sum(line["length_ratio"] for line in lines) / 5
        assert event["metrics"]["length_ratio"] == pytest.approx(mean)
        assert event["sets"]["validation"]["length_ratio"] == event["metrics"]["length_ratio"]
        assert event["num_prompts"] == 5
        values = evaluation_values(event)
        assert values["validation/length_ratio"] == event["metrics"]["length_ratio"]
        assert "validation/num_prompts" not in values
        shown = event_line("evaluation", event["step"], event)
        assert f", length_ratio {event['metrics']['length_ratio']:.4f}" in shown


def test_the_metric_chooses_the_best_step(folder: Path) -> None:
    found = [
        (-event["metrics"]["length_ratio"], event["step"])
        for event in events_named(folder / "run", "evaluation")[1:]
    ]
    last = events_named(folder / "run", "evaluation")[-1]
    assert (last["best"], last["best_step"]) == (-min(found)[0], min(found)[1])
    assert last["goal"] == "length_ratio of validation"


def test_a_run_is_the_same_with_a_metric_and_after_a_resume_without_its_file(
    folder: Path, tmp_path: Path
) -> None:
    plain = train(tmp_path, "plain", evaluation__metrics=None, evaluation__best="loss")
    assert same_run(metrics_of(plain)) == same_run(metrics_of(folder / "run"))
    run = Path(shutil.copytree(folder / "run", tmp_path / "run"))
    (run / "answers/step-00000004.jsonl").unlink()
    moved = folder / "toy.jsonl"
    moved.rename(moved.with_suffix(".gone"))  # the prompts are the run's own
    try:
        run_training(RunDir.open(run).config(), ResumeRequest(run, step=2))
    finally:
        moved.with_suffix(".gone").rename(moved)
    assert_same_end(run, folder / "run")
    expected = folder / "run/answers/step-00000004.jsonl"
    assert (run / "answers/step-00000004.jsonl").read_bytes() == expected.read_bytes()


def test_a_metric_that_fails_is_named_and_has_no_number(tmp_path: Path) -> None:
    names = ["fails_later", "length_ratio", "not_finite"]
    keys: dict[str, Any] = {"evaluation__metrics": [f"{HERE}:{name}" for name in names]}
    run = train(tmp_path, **keys, evaluation__best="max fails_later", train__patience=1)
    warnings = [one["message"] for one in events_named(run, "warning")]
    where = f"evaluation.metrics: {HERE}"
    assert [text for text in warnings if "at step 2" in text] == [
        f"{where}:fails_later: row 1 of validation: SystemExit: no more: no number at step 2",
        f"{where}:not_finite: row 0 of validation: the result is nan: no number at step 2",
    ]
    for event in events_named(run, "evaluation"):
        assert event["metrics"]["fails_later"] is event["metrics"]["not_finite"] is None
        assert event["metrics"]["length_ratio"] is not None
        assert event.get("best_step") is None  # it chose nothing, and used up no patience
        line = event_line("evaluation", event["step"], event)
        assert "length_ratio" in line and "fails_later" not in line
    assert events_named(run, "finished")[0]["step"] == 4
    assert warnings[-1] == (
        "final/ is of step 4: evaluation.best: fails_later gave no number in any evaluation after "
        "step 0"
    )


def test_an_evaluation_without_a_number_changes_no_choice() -> None:
    goal = Goal("a", "exact", "max")
    seen = with_evaluation(None, 0, 5.0, 0.0, goal, 0.9)
    seen = with_evaluation(seen, 1, 5.0, 0.0, goal, float("nan"))
    assert "best" not in seen
    seen = with_evaluation(seen, 2, 4.0, 0.0, goal, 0.2)
    seen = with_evaluation(seen, 3, 3.0, 0.0, goal, float("nan"))
    assert (seen["best"], seen["best_step"], seen["waited"], seen["step"]) == (0.2, 2, 0, 3)
    seen = with_evaluation(seen, 4, 3.0, 0.0, goal, 0.1)
    assert (seen["best_step"], seen["waited"]) == (2, 1)


@pytest.mark.parametrize("when", ["before", "in an answer"])
def test_a_signal_interrupts_the_answers(
    folder: Path, tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, asked = StopRequest(tmp_path / "stop"), list[int]()

    def answer(session: Any, questions: Any, batch: Any) -> dict[int, str]:
        asked.extend(batch)
        (tmp_path / "stop").write_text("SIGTERM")
        return {number: "cut" for number in batch}

    with restored_session(ResumeRequest(folder / "run"), ALONE, stop) as session:
        questions = judging_questions(folder / "run", session)
        if when == "before":
            (tmp_path / "stop").write_text("SIGTERM")
        monkeypatch.setattr(judging, "_answer", answer)
        assert judge(questions, Memory()) is None
    assert bool(asked) is (when != "before")


def judging_questions(run: Path, session: Any) -> Any:
    """The session with its questions, which a replay has no need of."""
    from dataclasses import replace

    from sftctl.train.answers.questions import open_questions

    model = session.state.loss_module.model
    found = open_questions(run, session.config, session.inputs, model)
    return replace(session, questions=found)


MISSING: dict[str, tuple[str, str]] = {
    "no module": ("nomodule_here:f", "nomodule_here can't be imported: ModuleNotFoundError"),
    "no function": (f"{HERE}:nothing", f"{HERE} has no function nothing"),
    "not a function": (f"{HERE}:NOT_A_FUNCTION", "has no function NOT_A_FUNCTION"),
}
WRONG: dict[str, tuple[str, str]] = {
    "not both": ("exact_match", "exact_match is not module:function"),
    "taken": (f"{HERE}:loss", "loss is a reserved name"),
    "twice": (f"a:f,{HERE}:f", "f is named twice"),
}


def test_a_run_continues_without_metrics_that_can_not_be_imported(tmp_path: Path) -> None:
    paths = [path for path, _ in MISSING.values()]
    run = train(
        tmp_path,
        evaluation__metrics=[*paths, f"{HERE}:length_ratio"],
        evaluation__best="loss",
        train__max_steps=2,
    )
    warnings = [one["message"] for one in events_named(run, "warning")]
    for path, message in MISSING.values():
        named = [one for one in warnings if f"evaluation.metrics: {path}: " in one]
        assert len(named) == 3  # at the start, at steps 0 and 2
        assert all(message in one for one in named)
        assert [(": not measured" in one, "no number at step" in one) for one in named] == [
            (True, False), (False, True), (False, True),
        ]  # fmt: skip
    for event in events_named(run, "evaluation"):
        assert event["metrics"].pop("length_ratio") is not None
        assert set(event["metrics"].values()) == {None} and len(event["metrics"]) == len(MISSING)


@pytest.mark.parametrize(("metrics", "message"), MISSING.values(), ids=MISSING)
def test_a_metric_that_can_not_be_imported_can_not_choose_the_best_step(
    metrics: str, message: str, tmp_path: Path
) -> None:
    best = f"max {metrics.partition(':')[2]}"
    with pytest.raises(ConfigError, match="evaluation.best: max ") as raised:
        train(tmp_path, evaluation__metrics=[metrics], evaluation__best=best)
    assert message in raised.value.message and raised.value.hint
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("metrics", "message"), WRONG.values(), ids=WRONG)
def test_a_metric_of_another_form_is_one_error_line_at_the_start(
    metrics: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as raised:
        train(tmp_path, evaluation__metrics=metrics.split(","), evaluation__best="loss")
    assert message in raised.value.message and raised.value.hint
    assert not (tmp_path / "run").exists()


def test_metrics_need_a_validation_set_a_complete_model_and_conversations(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"evaluation__best": "loss"}
    with pytest.raises(ConfigError, match="but the data has no validation set"):
        train(tmp_path, data__val_fraction=0.0, **keys)
    with pytest.raises(ConfigError, match="not available with fsdp"):
        train(tmp_path, train__strategy="fsdp", **keys)
    texts = tmp_path / "texts.jsonl"
    texts.write_bytes(b"".join(jsonio.dump_line({"text": f"a b c {n}"}) for n in range(30)))
    text = {"data__path": str(texts), "data__format": "text"}
    with pytest.raises(DataError, match="validation: no row of this set has a prompt"):
        train(tmp_path, **text, **keys)
    assert not (tmp_path / "run").exists()
