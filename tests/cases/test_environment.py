"""Odd surroundings and paths: each ends in one error with its reason, and nothing half-made."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from sftctl.config.load import file_layer, load_config, load_layers
from tests.toys.commands import Result
from tests.toys.data import row, written

Sftctl = Callable[..., Result]
COMMANDS = (
    ("prepare-data", "rows.jsonl", "--output", "store"),
    ("train", "--data", "rows.jsonl"),
    ("resume", "run"),
    ("inspect-ckpt", "run"),
    ("bench-loader", "store"),
    ("export", "run", "--output", "out"),
    ("chat", "run"),
    ("report", "run"),
    ("runs",),
    ("doctor",),
    ("init", "rows.jsonl"),
)


def test_every_command_refuses_a_deleted_working_directory(
    tmp_path: Path, sftctl: Sftctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    try:
        for command in COMMANDS:
            result = sftctl(*command)
            assert result.exit_code == 2, command
            assert "the working directory can't be used" in result.error
    finally:
        os.chdir(tmp_path)


def test_no_home_is_one_error_where_a_home_is_needed(
    tmp_path: Path, sftctl: Sftctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 4_000_000)
    rows = written(tmp_path / "rows.jsonl", [row("Hi")])
    result = sftctl("train", "--data", rows, "--model", "tiny", "--max-steps", 1)
    assert result.exit_code == 2
    assert result.error.startswith("error: there is no home folder for the cache")
    assert sftctl("prepare-data", rows, "--output", tmp_path / "store").exit_code == 0


@pytest.mark.parametrize(
    "kind",
    [OSError(28, "No space left on device"), Exception("No space left on device (os error 28)")],
)
def test_a_full_disk_under_the_tokenizer_is_one_error(
    tmp_path: Path, sftctl: Sftctl, monkeypatch: pytest.MonkeyPatch, kind: Exception
) -> None:
    """transformers raises the first for its own files, tokenizers the second for tokenizer.json."""

    def fail(self: object, folder: Path) -> None:
        Path(folder).mkdir(exist_ok=True)
        (Path(folder) / "tokenizer.json").write_text("{")
        raise kind

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", fail)
    rows = written(tmp_path / "rows.jsonl", [row("Hi")])
    result = sftctl("prepare-data", rows, "--output", tmp_path / "store")
    assert result.exit_code == 3
    assert "No space left on device" in result.error
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_byte_order_mark_in_config_toml_is_skipped() -> None:
    file = Path(__file__).parent / "rows" / "A20" / "bom_config.toml"
    _, origins = load_layers([file_layer(file)])
    assert origins["train.epochs"] == str(file)


PATHS: dict[str, tuple[str, int, str]] = {
    "a home": ("~/rows.jsonl", 2, "~ is not expanded here"),
    "a user's home": ("~somebody/rows.jsonl", 2, "~somebody is not expanded here"),
    "a variable": ("$HOME/rows.jsonl", 2, "$HOME is not expanded here"),
    "a variable in braces": ("${DATA}/rows.jsonl", 2, "${DATA} is not expanded here"),
    "a bucket": ("s3://bucket/rows.jsonl", 3, "sftctl reads only files on this machine"),
    "an address": ("https://example.org/rows.jsonl", 3, "sftctl reads only files on this machine"),
    "a data set of the hub": ("owner/chats", 3, "is this a data set on the hub?"),
}


@pytest.mark.parametrize(("path", "code", "says"), PATHS.values(), ids=PATHS)
def test_a_path_of_another_kind_has_its_reason(
    tmp_path: Path, sftctl: Sftctl, path: str, code: int, says: str
) -> None:
    (tmp_path / "run.toml").write_text(f'[data]\npath = "{path}"\n')
    for result in (sftctl("train", tmp_path / "run.toml"), sftctl("train", "--data", path)):
        assert result.exit_code == code
        assert says in result.stderr


def test_a_folder_that_is_called_like_a_variable_is_that_folder(tmp_path: Path) -> None:
    (tmp_path / "$DATA").mkdir()
    os.chdir(tmp_path)
    assert load_config(None, ["data.path=$DATA"]).data.path == "$DATA"
