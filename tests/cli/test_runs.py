"""sftctl runs: the table, its JSON, and a folder without runs."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sftctl import jsonio
from sftctl.cli.show.runs import runs_table
from sftctl.runs.overview import RunLine
from tests.toys.commands import Result
from tests.toys.records import toy_run

Sftctl = Callable[..., Result]


def test_runs_lists_each_run_and_what_to_type_next(sftctl: Sftctl, tmp_path: Path) -> None:
    toy_run(tmp_path, 80, "first")
    toy_run(tmp_path, 8, "second", data__path="/data/a.jsonl")
    shown = sftctl("runs", tmp_path).stdout
    for text in ("first", "second", "finished", "80/80", "8/8", "tiny", "a.jsonl", "ago"):
        assert text in shown
    assert f"first: sftctl resume {tmp_path}/first" in shown
    found = jsonio.loads(sftctl("runs", tmp_path, "--json").stdout)["runs"]
    assert {one["name"]: (one["status"], one["step"], one["total_steps"]) for one in found} == {
        "first": ("finished", 80, 80),
        "second": ("finished", 8, 8),
    }
    assert {"run_dir", "loss", "validation_loss", "best_step", "next"} <= found[0].keys()


def test_a_killed_run_names_the_step_that_a_resume_goes_back_to() -> None:
    facts: dict[str, Any] = {"run_dir": Path("runs/a"), "name": "a", "next": "sftctl resume runs/a"}
    losses: dict[str, Any] = {"first_validation_loss": 7.7217, "validation_loss": 7.7217}
    killed = RunLine(**facts, **losses, status="killed", step=150, last_checkpoint=100)
    saved = RunLine(**facts, status="stopped", step=100, last_checkpoint=100)
    for line, said in (
        (killed, "a: sftctl resume runs/a (continues from step 100)"),
        (saved, "a: sftctl resume runs/a\n"),
    ):
        console = Console(width=200, record=True, file=io.StringIO())
        console.print(runs_table(Path("runs"), [line]))
        text = "\n".join(one.rstrip() for one in console.export_text().splitlines()) + "\n"
        assert said in text
        assert "->" not in text and ("7.7217" in text) == (line is killed)


def test_a_folder_without_runs_and_no_folder(
    sftctl: Sftctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert f"no runs in {tmp_path}" in sftctl("runs", tmp_path).stdout
    assert jsonio.loads(sftctl("runs", tmp_path, "--json").stdout) == {"runs": []}
    monkeypatch.chdir(tmp_path)
    failed = sftctl("runs")
    assert (failed.exit_code, failed.error) == (2, "error: runs: no such folder")
