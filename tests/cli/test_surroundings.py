"""Odd surroundings of a command: no home, no folder, names and streams that are not UTF-8."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sftctl import environment
from sftctl.errors import ConfigError
from sftctl.model.folder.load_errors import from_hub_or_disk
from sftctl.model.source import ModelSource
from tests.toys.commands import Result
from tests.toys.data import row, written

Sftctl = Callable[..., Result]


def test_no_home_and_no_user_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setattr("os.getuid", lambda: 4_000_000)
    with pytest.raises(ConfigError, match="there is no home folder for the cache"):
        environment.cache_folder()
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert environment.cache_folder() == Path("/home/somebody/.cache/sftctl")


def test_a_deleted_working_directory_is_one_error(
    tmp_path: Path, sftctl: Sftctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    result = sftctl("train", "--model", "tiny")
    os.chdir(tmp_path)
    assert (result.exit_code, result.error) == (
        2,
        "error: the working directory can't be used: No such file or directory; was it deleted?",
    )


@pytest.mark.parametrize("value", ["a\\u0000b", "[" * 5000])
def test_a_value_that_is_no_path_is_one_error(tmp_path: Path, sftctl: Sftctl, value: str) -> None:
    quoted = f'"{value}"' if not value.startswith("[") else value + "]" * 5000
    (tmp_path / "run.toml").write_text(f"[data]\npath = {quoted}\n")
    result = sftctl("train", "run.toml")
    assert result.exit_code == 2
    assert "error: run.toml: " in result.stderr
    assert "Traceback" not in result.stderr


def test_a_name_that_is_too_long_is_one_error(sftctl: Sftctl) -> None:
    result = sftctl("train", "--data", "x" * 5000)
    assert result.exit_code == 2
    assert "File name too long" in result.stderr


def test_a_row_file_whose_name_is_not_utf8_is_read_and_shown(tmp_path: Path) -> None:
    written(tmp_path / "rows.jsonl", [row("one"), {"what": "is this"}])
    os.rename(tmp_path / "rows.jsonl", os.fsencode(tmp_path) + b"/r\xff.jsonl")
    command: list[str | bytes] = [
        sys.executable,
        "-m",
        "sftctl",
        "prepare-data",
        b"r\xff.jsonl",
        "--output",
    ]
    done = subprocess.run([*command, "out"], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b'"r\\\\xff.jsonl"' in (tmp_path / "out/ledger.jsonl").read_bytes()
    done = subprocess.run([*command, b"o\xfe"], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 2
    assert b"this name is not UTF-8" in done.stderr


def test_a_run_s_value_that_is_auto_again_is_named(tmp_path: Path) -> None:
    from sftctl.runs.directory import RunDir

    (tmp_path / "config.toml").write_text('[model]\nname = "tiny"\n[optim]\nlearning_rate = 1e-3\n')
    with pytest.raises(ConfigError, match=r"config\.toml: train\.dtype is missing or auto"):
        RunDir(tmp_path).resolved_config()
    (tmp_path / "config.toml").write_text('[model]\nname = "tiny"\n')
    with pytest.raises(ConfigError, match=r"optim\.learning_rate is missing or auto"):
        RunDir(tmp_path).resolved_config()


BAD_NAME = os.fsdecode(b"r\xff")
"""A name that is not UTF-8, which the libraries that read models can't open."""


@pytest.mark.parametrize(
    "command",
    [
        ("resume", BAD_NAME),
        ("resume", BAD_NAME, "--verify-replay"),
        ("report", BAD_NAME),
        ("chat", BAD_NAME, "--prompt", "hi"),
        ("export", BAD_NAME, "--output", "out"),
        ("export", "run", "--output", BAD_NAME),
        ("prepare-data", "rows.jsonl", "--output", BAD_NAME),
    ],
)
def test_a_run_or_output_whose_name_is_not_utf8_is_one_error(
    tmp_path: Path, sftctl: Sftctl, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    for run in (BAD_NAME, "run"):
        if run not in command[2:]:
            Path(run).mkdir()
            Path(run, "run.json").write_text('{"run_id": "x"}')
            Path(run, "config.toml").write_text('[model]\nname = "tiny"\n')
    written(tmp_path / "rows.jsonl", [row("one")])
    result = sftctl(*command)
    assert result.error.endswith("r\\udcff: this name is not UTF-8")
    assert result.exit_code == (2 if BAD_NAME in command[2:] else 4)
    assert "hint: use another name, or rename it: safetensors and" in result.stderr
    assert not Path("out").exists()


@pytest.mark.parametrize("name", ["run.json", "config.toml"])
def test_a_run_that_lacks_one_of_its_files_names_it(
    tmp_path: Path, sftctl: Sftctl, name: str
) -> None:
    for file in ("run.json", "config.toml"):
        (tmp_path / file).write_text("")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / name).unlink()
    for what in ("missing", "not a file"):
        result = sftctl("resume", tmp_path)
        assert (result.exit_code, result.error) == (4, f"error: {tmp_path / name}: {what}")
        assert "hint: put it back from a copy" in result.stderr
        (tmp_path / name).mkdir(exist_ok=True)


@pytest.mark.parametrize(
    "problem, words",
    [
        (MemoryError(), "not enough memory"),
        (
            ImportError("libtorch_cpu.so: failed to map segment from shared object"),
            "not enough memory: libtorch_cpu.so: failed to map segment from shared object",
        ),
        (RuntimeError("can't start new thread"), "not enough memory: can't start new thread"),
    ],
)
def test_too_little_memory_is_one_error(
    tmp_path: Path,
    sftctl: Sftctl,
    monkeypatch: pytest.MonkeyPatch,
    problem: Exception,
    words: str,
) -> None:
    def fail(folder: Path) -> None:
        raise problem

    monkeypatch.setattr("sftctl.runs.overview.runs_in", fail)
    result = sftctl("runs", tmp_path)
    assert (result.exit_code, result.error) == (2, f"error: {words}")


def test_a_model_whose_name_is_not_utf8_is_one_error(tmp_path: Path) -> None:
    folder = tmp_path / BAD_NAME
    folder.mkdir()
    with pytest.raises(ConfigError, match="this name is not UTF-8"):
        ModelSource.of(str(folder))


def test_too_little_memory_is_not_a_damaged_model(tmp_path: Path) -> None:
    problem = RuntimeError("unable to mmap 921512 bytes: Cannot allocate memory (12)")
    with (
        pytest.raises(ConfigError, match="model x: not enough memory: unable to mmap"),
        from_hub_or_disk("model x", ModelSource.of(str(tmp_path))),
    ):
        raise problem


def test_another_error_of_a_library_is_not_hidden(
    tmp_path: Path, sftctl: Sftctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("sftctl.runs.overview.runs_in", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        sftctl("runs", tmp_path)
