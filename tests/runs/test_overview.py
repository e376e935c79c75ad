"""overview: the facts that `sftctl runs` reads from the files of each run in a folder."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from sftctl.checkpoint.sealed import seal
from sftctl.cli.show.runs import runs_table
from sftctl.errors import ConfigError
from sftctl.machine import lock_holder
from sftctl.runs.overview import RunLine, runs_in, status_of
from tests.toys.checkpoints import make_manifest
from tests.toys.records import metrics, toy_run, write_lines

LOCKS = """
import fcntl, sys
with open(sys.argv[1], "w") as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    print("locked", flush=True)
    sys.stdin.readline()
"""


def make_final(run: Path, step: int) -> None:
    (run / "final").mkdir()
    (run / "final" / "config.json").write_text("{}")
    seal(run / "final", make_manifest(step), "x", 80, "best")


def test_a_finished_run_says_its_losses_its_best_step_and_what_is_next(tmp_path: Path) -> None:
    run = toy_run(tmp_path, 80, data__path="/data/chats.jsonl")
    make_final(run, 40)
    (line,) = runs_in(tmp_path)
    assert (line.name, line.status, line.step, line.total_steps) == ("run", "finished", 80, 80)
    assert (line.model, line.data) == ("tiny", "chats.jsonl")
    assert line.first_loss == metrics(1)["loss"] and line.loss == metrics(80)["loss"]
    assert line.first_validation_loss is not None and line.validation_loss is not None
    assert (line.best_step, line.best_validation_loss) == (80, line.validation_loss)
    assert line.final_step == 40
    assert line.tokens_per_s is not None and line.tokens_per_s > 0
    assert line.next == f"sftctl chat {run}"
    assert runs_in(run) == [line]


def test_the_data_of_a_mixture_are_the_paths_of_its_sources(tmp_path: Path) -> None:
    sources = [{"name": name, "path": f"/data/{name}.jsonl"} for name in ("en", "zh")]
    toy_run(tmp_path, 8, data__path=None, data__sources=sources)
    (line,) = runs_in(tmp_path)
    assert line.data == "en.jsonl, zh.jsonl"


def test_what_chose_the_best_step_is_named_and_each_set_has_its_loss(tmp_path: Path) -> None:
    run = toy_run(tmp_path, 8)
    sets = {"ones": {"loss": 1.25, "exact": 0.5}, "zeros": {"loss": 2.5, "exact": None}}
    evaluation = {"event": "evaluation", "step": 4, "validation_loss": 2.0, "sets": sets}
    chosen = {"best": 0.5, "best_step": 4, "goal": "exact of ones", "metrics": {"exact": None}}
    write_lines(run / "events.jsonl", [evaluation | chosen, evaluation | chosen | {"step": 8}])
    (line,) = runs_in(tmp_path)
    assert (line.best_of, line.best, line.best_step) == ("exact of ones", 0.5, 4)
    assert line.set_losses == {"ones": 1.25, "zeros": 2.5}
    row, others = shown_on(200, [line])[1], shown_on(200, [line])[4]
    assert "2.0000 -> 2.0000  exact of ones 0.5000 at 4" in row
    assert others == "run: ones 1.2500, zeros 2.5000"


def shown_on(width: int, lines: list[RunLine]) -> list[str]:
    """The table's lines on a terminal of that width."""
    console = Console(width=width, file=io.StringIO())
    with console.capture() as captured:
        console.print(runs_table(Path("runs"), lines))
    return [line.rstrip() for line in captured.get().splitlines()]


def test_without_validation_the_lowest_loss_of_a_step_is_the_best(tmp_path: Path) -> None:
    run = toy_run(tmp_path, 80)
    write_lines(run / "events.jsonl", [{"event": "started", "step": 0, "total_steps": 80}])
    (line,) = runs_in(tmp_path)
    losses = [metrics(step)["loss"] for step in range(1, 81)]
    lowest = min(losses)
    assert (line.best_step, line.lowest_loss) == (None, lowest)
    assert line.lowest_loss_step == 1 + losses.index(lowest)
    assert f"loss {lowest:.4f} at {line.lowest_loss_step}" in shown_on(200, [line])[1]


@pytest.mark.parametrize(
    ("width", "left_out"),
    [(200, []), (80, ["tok/s", "data", "model", "changed"]), (60, ["loss", "best"])],
)
def test_the_table_of_runs_loses_columns_and_no_letters(
    tmp_path: Path, width: int, left_out: list[str]
) -> None:
    toy_run(tmp_path, 1000, "a-run-with-a-name", data__path="/data/chats.jsonl")
    heads, row = shown_on(width, runs_in(tmp_path))[:2]
    assert {*left_out}.isdisjoint(heads.split())
    assert heads.split()[:3] == ["run", "status", "step"] and "validation" in heads.split()
    assert len(heads.split()) == 10 or width < 200
    assert row.split()[:3] == ["a-run-with-a-name", "finished", "1000/1000"]
    assert max(len(heads), len(row)) <= width


@pytest.mark.parametrize(
    ("names", "status"),
    [
        (["started"], "unfinished"),
        (["started", "saved", "stopped"], "stopped"),
        (["started", "stopped", "resumed"], "unfinished"),
        (["started", "failed", "warning"], "failed"),
        ([], "unfinished"),
    ],
)
def test_the_last_event_of_a_session_decides_the_status(names: list[str], status: str) -> None:
    assert status_of([{"event": name} for name in names]) == status


def test_a_run_that_is_locked_is_running_and_one_without_an_end_was_killed(tmp_path: Path) -> None:
    run = toy_run(tmp_path, 8)
    write_lines(run / "events.jsonl", [{"event": "started", "step": 0, "total_steps": 8}])
    (line,) = runs_in(tmp_path)
    assert (line.status, line.next) == ("killed", f"sftctl resume {run}")
    command = [sys.executable, "-c", LOCKS, str(run / ".lock")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "locked\n"
        if sys.platform == "linux":
            assert lock_holder(run / ".lock") == other.pid
            (line,) = runs_in(tmp_path)
            assert (line.status, line.next) == ("running", None)
        other.communicate("\n")
    assert lock_holder(run / ".lock") is None


def test_damage_is_one_line_and_hides_no_other_run(tmp_path: Path) -> None:
    good, bad, torn = (toy_run(tmp_path, 8, name) for name in ("good", "bad", "torn"))
    (bad / "run.json").write_text("{")
    (torn / "metrics.jsonl").write_bytes(b"\xff\n" + (good / "metrics.jsonl").read_bytes()[:-5])
    (tmp_path / "not a run").mkdir()
    by_name = {line.name: line for line in runs_in(tmp_path)}
    assert by_name.keys() == {"good", "bad", "torn"}
    assert by_name["bad"].status == "damaged" and "run.json" in (by_name["bad"].problem or "")
    assert (by_name["torn"].status, by_name["torn"].step) == ("finished", 7)
    assert by_name["good"].next == f"sftctl resume {good}"  # it has no final/ yet


def test_a_long_run_is_read_from_its_ends(tmp_path: Path) -> None:
    toy_run(tmp_path, 900)
    (line,) = runs_in(tmp_path)
    assert (line.step, line.first_loss) == (900, metrics(1)["loss"])


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere: no such folder"):
        runs_in(tmp_path / "nowhere")
    assert runs_in(tmp_path) == []
