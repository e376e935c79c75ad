"""Flags that set a configuration key: their names, their help, and what they override."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sftctl.cli.options import flag_name
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


def test_the_help_of_a_flag_is_the_documentation_of_its_key_with_its_default(
    sftctl: Sftctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERMINAL_WIDTH", "200")
    lines = sftctl("train", "--help").stdout.splitlines()
    [grad_clip] = [line for line in lines if "--grad-clip" in line]
    assert "<float>" in grad_clip
    assert "(L2 over all parameters); 0 disables clipping. Default: 1.0." in grad_clip
    [max_steps] = [line for line in lines if "--max-steps" in line]
    assert "<int>" in max_steps and "Default:" not in max_steps
    [rate] = [line for line in lines if "--learning-rate" in line]
    assert "<float|auto>" in rate
