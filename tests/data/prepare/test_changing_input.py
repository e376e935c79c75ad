"""An input that changes while it is prepared is refused, and no store is left."""

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sftctl.config.schema import DataConfig
from sftctl.data.prepare.builder import Progress
from sftctl.data.prepare.fingerprint import PrepareOptions
from sftctl.data.prepare.prepare import prepare_store
from sftctl.data.sample import SAMPLE_TOKENIZER
from sftctl.errors import DataError
from sftctl.model.tokenizer.tokenizer import load_tokenizer
from tests.toys.runs import toy_data


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(path.read_bytes()[:200].splitlines(keepends=True)[0])


def change_a_byte(path: Path) -> None:
    data = path.read_bytes()
    with path.open("r+b") as file:  # the same file
        file.write(data.replace(b"Count", b"Mount", 1))


def replace(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(path.read_bytes() * 2)
    os.replace(other, path)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def prepare(path: Path, act: Callable[[Path], None], workers: int) -> None:
    """Prepare a file, and call `act` on it after its first batch."""
    acts = iter([act])

    def on_progress(progress: Progress) -> None:
        for one in acts:
            one(path)

    options = PrepareOptions(num_workers=workers, batch_bytes=300)
    tokenizer = load_tokenizer(str(SAMPLE_TOKENIZER)).with_engine("auto")
    output = path.parent / "store"
    prepare_store([path], output, tokenizer, DataConfig(), (), on_progress, options)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("act", [append, change_a_byte, replace, cut, Path.unlink])
def test_a_file_that_changes_is_refused(
    tmp_path: Path, act: Callable[[Path], None], workers: int
) -> None:
    path = toy_data(tmp_path)
    with pytest.raises(DataError, match="changed while it was prepared|no such file") as raised:
        prepare(path, act, workers)
    assert raised.value.message.startswith(str(path)) and raised.value.exit_code == 3
    left = {file.name for file in tmp_path.iterdir()} - {path.name}
    assert left == set()


def test_a_compressed_file_that_changes_is_refused_too(tmp_path: Path) -> None:
    packed = tmp_path / "toy.jsonl.gz"
    packed.write_bytes(gzip.compress(toy_data(tmp_path).read_bytes()))

    def add_a_member(path: Path) -> None:
        with path.open("ab") as file:
            file.write(gzip.compress(b'{"messages": []}\n'))

    with pytest.raises(DataError, match="changed while it was prepared"):
        prepare(packed, add_a_member, 1)
