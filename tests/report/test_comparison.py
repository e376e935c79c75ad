"""A page about several runs: their curves together, and the settings in which they differ."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sftctl.errors import ConfigError
from sftctl.report.page import write_comparison
from tests.toys.commands import Result
from tests.toys.html import Parsed
from tests.toys.records import metrics, toy_run, write_lines


def page_of(runs: list[Path]) -> Parsed:
    path, _ = write_comparison(runs, None)
    assert path == runs[0] / "comparison.html"
    parsed = Parsed()
    parsed.feed(path.read_text(encoding="utf-8"))
    parsed.close()
    return parsed


def test_each_run_has_a_curve_and_only_other_settings_are_listed(tmp_path: Path) -> None:
    runs = [
        toy_run(tmp_path, 300, "slow", optim__learning_rate=1e-5),
        toy_run(tmp_path, 200, "fast", optim__learning_rate=1e-4, train__patience=2,
                train__eval_interval=20),
        toy_run(tmp_path, 100, "<b>third", optim__learning_rate=1e-5),
    ]  # fmt: skip
    page = page_of(runs)
    assert page.count("figure") == 7
    num_plots = 7 + 1  # the loss on two scales
    assert page.count("g", "s2") == num_plots and page.count("g", "s3") == 0
    assert [w for w in page.words if w.startswith(("optim.", "train.", "data.", "model."))] == [
        "optim.learning_rate", "train.eval_interval", "train.patience"
    ]  # fmt: skip
    assert page.words.count("<b>third") >= 2 and page.count("b") == 0
    assert page.words.count("finished") == 3
    assert "not set" not in page.words


def test_each_source_has_a_chart_with_a_curve_of_each_run(tmp_path: Path) -> None:
    runs = [toy_run(tmp_path, 8, name) for name in ("one", "other")]
    source = {"num_examples": 1, "num_tokens": 9, "num_target_tokens": 5, "loss": 2.5}
    for run in runs:
        names = ("chat", "tools") if run.name == "one" else ("chat",)
        lines = [metrics(step) | {"sources": dict.fromkeys(names, source)} for step in range(1, 9)]
        write_lines(run / "metrics.jsonl", lines)
    page = page_of(runs)
    titles = dict.fromkeys(word for word in page.words if word.startswith("Training loss of"))
    assert [*titles] == ["Training loss of chat", "Training loss of tools"]
    assert page.count("g", "s1") == 7 + 1 + 1  # the other run has one source


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    runs = []
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        runs.append(toy_run(tmp_path / folder, 8))
    page = page_of(runs)
    assert page.words.count(str(runs[1])) >= 1
    assert "All settings are the same." in page.words


def test_more_runs_than_colours_are_refused(tmp_path: Path) -> None:
    runs = [toy_run(tmp_path, 1, f"run-{number}") for number in range(9)]
    with pytest.raises(ConfigError, match="9 runs: a page can compare at most 8 runs"):
        write_comparison(runs, None)
    assert not (runs[0] / "comparison.html").exists()


def test_the_command_takes_several_runs(tmp_path: Path, sftctl: Callable[..., Result]) -> None:
    one, other = toy_run(tmp_path, 8, "one"), toy_run(tmp_path, 8, "other")
    result = sftctl("report", one, other, "--output", tmp_path / "page.html", "--json")
    found = json.loads(result.stdout)
    assert found["report"] == str(tmp_path / "page.html")
    assert [run["run_dir"] for run in found["runs"]] == [str(one), str(other)]
    missing = sftctl("report", one, tmp_path / "nowhere")
    assert (missing.exit_code, "nowhere: no such run directory" in missing.error) == (4, True)
