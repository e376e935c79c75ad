"""Files that this user may not read: each command names the file, the user, and the rights."""

import os
import pwd
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.toys.commands import Result
from tests.toys.models import toy_base, with_tokenizer, write_base
from tests.toys.rights import as_an_ordinary_user

Sftctl = Callable[..., Result]
USER = pwd.getpwuid(os.geteuid()).pw_name


@pytest.fixture
def rights() -> Iterator[None]:
    with as_an_ordinary_user():
        yield


CLOSED = (
    *("model/model.safetensors", "model/config.json", "model/tokenizer.json", "model"),
    *("model/tokenizer_config.json", "model/generation_config.json"),
    *("x.gguf", "x.pth", "x.safetensors", "rows.jsonl"),
)


@pytest.mark.parametrize("name", CLOSED)
def test_a_file_that_may_not_be_read_is_named_with_its_rights(
    tmp_path: Path, rights: None, sftctl: Sftctl, name: str
) -> None:
    base = toy_base(vocab_size=2048, max_position_embeddings=2048)
    with_tokenizer(write_base(tmp_path / "model", base))
    for other in ("x.gguf", "x.pth", "x.safetensors", "rows.jsonl"):
        (tmp_path / other).write_bytes(b"GGUF\3\0\0\0" + bytes(99))
    closed = tmp_path / name
    closed.chmod(0)
    shown = closed if name.startswith("x.") else tmp_path / "model"
    commands = {
        "train": ("train", "--model", shown, "--dry-run"),
        "inspect": ("inspect-ckpt", shown),
    }
    if name == "rows.jsonl":
        commands = {"train": ("train", "--model", "tiny", "--data", closed, "--dry-run")}
    if name == "x.safetensors":
        del commands["train"]  # refused by its name
    try:
        results = {command: sftctl(*arguments) for command, arguments in commands.items()}
    finally:
        closed.chmod(0o700)
    kind = "d---------" if closed.is_dir() else "----------"
    hint = f" {closed}: its mode is {kind}, its owner {USER}; `chmod "
    for result in results.values():
        assert result.exit_code in (2, 3, 4)
        assert str(closed) in result.error and "permission denied" in result.error.lower()
        assert f"hint: user {USER} may not " in result.stderr and hint in result.stderr
