"""Flags that set a configuration key: their names, their help, and what they override."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main

from sftctl.cli.app import app
from sftctl.cli.options import flag_name
from sftctl.config.keys import documentation
from tests.toys.commands import Result

Sftctl = Callable[..., Result]


def configuration(sftctl: Sftctl, *words: object) -> Any:
    return json.loads(sftctl("train", *words, "--print-config", "--json").stdout)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("data.path", "--data"),
        ("model.name", "--model"),
        ("optim.learning_rate", "--learning-rate"),
        ("output_dir", "--output-dir"),
    ],
)
def test_a_flag_is_named_after_its_key(key: str, name: str) -> None:
    assert flag_name(key) == name


def test_a_flag_beats_set_and_set_beats_the_file(sftctl: Sftctl, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("[train]\nepochs = 5\nbatch_size = 5\nseed = 5\n")
    assignments = ["--set", "train.epochs=4", "--set", "train.batch_size=4"]
    train = configuration(sftctl, "run.toml", *assignments, "--epochs", 3)["train"]
    assert (train["epochs"], train["batch_size"], train["seed"]) == (3, 4, 5)


@pytest.mark.parametrize(
    ("flag", "expected"), [("--wandb", True), ("--no-wandb", False), (None, True)]
)
def test_a_switch_turns_on_or_off_what_the_file_says(
    sftctl: Sftctl, tmp_path: Path, flag: str | None, expected: bool
) -> None:
    (tmp_path / "run.toml").write_text("[tracking]\nwandb = true\n")
    words = ["run.toml"] if flag is None else ["run.toml", flag]
    assert configuration(sftctl, *words)["tracking"]["wandb"] is expected


def test_the_help_of_a_flag_is_the_documentation_of_its_key_with_its_default() -> None:
    command: Any = typer.main.get_command(app)
    flags = {option.opts[0]: option for option in command.commands["train"].params}
    grad_clip, max_steps = flags["--grad-clip"], flags["--max-steps"]
    assert grad_clip.help == f"{documentation()['optim.grad_clip']} Default: 1.0."
    assert max_steps.help == documentation()["train.max_steps"]  # unset
    metavars = [flags[name].metavar for name in ("--grad-clip", "--max-steps", "--learning-rate")]
    assert metavars == ["<float>", "<int>", "<float|auto>"]
    assert flags["--wandb"].secondary_opts == ["--no-wandb"]


@pytest.mark.parametrize(
    ("data", "sources"),
    [
        (["d/a.jsonl", "b.json.gz"], [("a", "d/a.jsonl"), ("b", "b.json.gz")]),
        (["d/a.jsonl", "e/a.jsonl", "a"], [("a", "d/a.jsonl"), ("a-2", "e/a.jsonl"), ("a-3", "a")]),
        (["code=x.jsonl", "chat=y.jsonl"], [("code", "x.jsonl"), ("chat", "y.jsonl")]),
    ],
)
def test_several_data_are_several_sources_also_in_place_of_the_file_s_data(
    sftctl: Sftctl, tmp_path: Path, data: list[str], sources: list[tuple[str, str]]
) -> None:
    (tmp_path / "run.toml").write_text('[data]\npath = "other"\n')
    flags = [word for one in data for word in ("--data", one)]
    values = configuration(sftctl, "run.toml", *flags)["data"]
    assert "path" not in values
    assert [(one["name"], one["path"]) for one in values["sources"]] == sources
    assert configuration(sftctl, "run.toml", "--data", "one")["data"]["path"] == "one"
