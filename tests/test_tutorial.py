"""The tutorial's commands, typed in its order in an empty folder."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sftctl.cli.app import app

TUTORIAL = Path(__file__).parents[1] / "docs" / "tutorial.md"
INSTALLING = ("git", "cd", "python3 -m venv", ".venv/bin/pip", "source")
FEW_STEPS = ["--max-steps", "4", "--set", "checkpoint.save_interval=2"]  # two to replay between


def blocks() -> list[str]:
    return re.findall(r"^```[a-z]*\n(.*?)^```", TUTORIAL.read_text("utf-8"), re.M | re.S)


def commands() -> list[list[str]]:
    """What follows `$ `, as words."""
    lines = [line for block in blocks() for line in block.replace("\\\n", " ").splitlines()]
    typed = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return [shlex.split(line) for line in typed if not line.startswith(INSTALLING)]


def write_files(folder: Path) -> None:
    """A block that begins with a file's name in a comment is that file."""
    for block in blocks():
        name = re.match(r"# ([a-z_]+\.(?:py|jsonl))", block)
        if name:
            text = block if name[1].endswith(".py") else block.partition("\n")[2]
            (folder / name[1]).write_text(text, encoding="utf-8")


def type_all(folder: Path, monkeypatch: pytest.MonkeyPatch, shortened: bool) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    write_files(folder)
    for program, *arguments in commands():
        if program == "python3":
            subprocess.run([sys.executable, *arguments], check=True, timeout=60)
            continue
        assert program == "sftctl", program
        if shortened and arguments[0] == "train" and "--max-steps" not in arguments:
            arguments += FEW_STEPS
        with pytest.raises(SystemExit) as ended:
            app(arguments, prog_name="sftctl")
        assert not ended.value.code, arguments


def test_every_command_of_the_tutorial_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = {words[1] for words in commands() if words[0] == "sftctl"}
    assert typed >= {"train", "chat", "prepare-data", "resume", "inspect-ckpt", "export"}
    type_all(tmp_path, monkeypatch, shortened=True)


@pytest.mark.real
def test_the_tutorial_as_it_stands_teaches_a_model_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_all(tmp_path, monkeypatch, shortened=False)
    assert capsys.readouterr().out.strip().endswith("Your calculator.")
