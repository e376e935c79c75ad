"""Commands without a name or an output take the newest run, choose a name, and print it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sftctl.data.store import TokenStore
from sftctl.train.run import run_training
from sftctl.trained.checks import default_output
from tests.toys.commands import Result
from tests.toys.runs import toy_config, toy_data

Sftctl = Callable[..., Result]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder runs/, with a run `new`, and `old`, which looks as if it had trained before."""
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    run_training(toy_config(Path("runs"), "new", train__max_steps=1))
    old = Path("runs/old")
    old.mkdir()
    for name in ("run.json", "metrics.jsonl"):
        (old / name).write_text("{}")
        os.utime(old / name, (1, 1))
    return tmp_path / "runs"


def test_the_newest_run_is_taken_and_named(sftctl: Sftctl, runs: Path) -> None:
    for command, shown in (
        (["report"], "wrote runs/new/report.html"),
        (["inspect-ckpt"], "step-00000001"),
        (["resume"], "already finished: step 1 of 1"),
        (["chat", "--prompt", "Hi", "--max-new-tokens", 1], ""),
        (["export"], "exported to runs/new/export"),
        (["export"], "exported to runs/new/export-2"),
    ):
        result = sftctl(*command)
        assert result.exit_code == 0
        assert "run: runs/new (the newest)\n" in result.stderr
        assert shown in result.stdout


def test_resume_prefers_a_run_that_has_not_finished(sftctl: Sftctl, runs: Path) -> None:
    shutil.copytree(runs / "new", runs / "killed")
    (runs / "killed/events.jsonl").write_text('{"event": "started", "total_steps": 9}\n')
    for name in ("events.jsonl", "metrics.jsonl"):
        os.utime(runs / "killed" / name, (9, 9))
    for command, said in (
        (["resume", "--dry-run"], "run: runs/killed (the newest that has not finished"),
        (["report"], "run: runs/new (the newest)\n"),
        (["report", "nothing"], "hint: start one with `sftctl train`"),
        (["report", "runs/nothing"], "hint: the newest run there: `sftctl report runs/new`; "),
    ):
        assert said in sftctl(*command).stderr
    shown = sftctl("runs").stdout
    assert shown.index("new") < shown.index("killed")


def test_data_is_not_a_model_to_chat_with(sftctl: Sftctl, tmp_path: Path) -> None:
    (tmp_path / "faq.csv").write_text("prompt,completion\n")
    assert "hint: `sftctl train --data faq.csv` trains" in sftctl("chat", "faq.csv").stderr


def test_the_run_in_the_working_directory_is_taken(
    sftctl: Sftctl, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs / "new")
    result = sftctl("report", "--json")
    assert json.loads(result.stdout)["report"] == "report.html"
    assert result.stderr.endswith("run: . (the newest)\n")


def test_without_a_run_there_is_one_error_line(sftctl: Sftctl, tmp_path: Path) -> None:
    for command in (["report"], ["inspect-ckpt"], ["resume"], ["chat", "--prompt", "x"]):
        result = sftctl(*command)
        assert result.exit_code == 4
        assert result.error == f"error: no run is named, and {tmp_path}/runs has no run"
        assert "hint: name one, or start one with `sftctl train`" in result.stderr


@pytest.mark.parametrize(
    ("source", "kind", "output"),
    [
        ("model", "hf", "model-export"),
        ("model", "gguf", "model-export-gguf"),
        ("run", "gguf", "run/export-gguf"),
        ("run/checkpoints/step-1", "hf", "run/export-step-1"),
    ],
)
def test_an_export_is_put_into_its_run_or_beside_its_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, kind: str, output: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for file in ("run/run.json", "run/checkpoints/step-1/manifest.json", "model/config.json"):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).touch()
    assert default_output(Path(source), kind) == Path(output)
    assert default_output(tmp_path / source, kind) == tmp_path / output


def test_a_store_is_named_after_its_first_input(
    sftctl: Sftctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    toy_data(tmp_path / "data", 3)
    for inputs, name in ((["data/toy.jsonl"], "toy"), (["data"], "data"), (["data/*.j*"], "data")):
        result = sftctl("prepare-data", *inputs)
        assert result.exit_code == 0
        assert f"output: {name}.store\n" in result.stderr
        assert len(TokenStore.open(tmp_path / f"{name}.store")) == 3
