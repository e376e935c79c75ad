"""disk: an OSError becomes one of our errors."""

import resource
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sftctl.data.sample import SAMPLE_TOKENIZER
from sftctl.disk import read_refusals, refusals, system_errors
from sftctl.errors import CheckpointError, ConfigError, CorruptCheckpoint
from sftctl.model.load import load_model, save_pretrained
from sftctl.model.tokenizer.tokenizer import load_tokenizer


def test_refusals_names_the_path_and_the_reason_and_keeps_the_cause() -> None:
    cause = OSError(28, "No space left on device")
    with (
        pytest.raises(ConfigError) as caught,
        refusals(Path("a/b"), ConfigError, "make room"),
    ):
        raise cause
    assert caught.value.message == "a/b: can't be written: No space left on device"
    assert caught.value.hint == "make room"
    assert caught.value.__cause__ is cause


def test_refusals_have_the_words_of_the_act_and_need_no_hint() -> None:
    with (
        pytest.raises(CheckpointError) as caught,
        refusals("a", CheckpointError, what="can't be deleted"),
    ):
        raise OSError("the library's own words")  # no errno, so no strerror
    assert caught.value.message == "a: can't be deleted: the library's own words"
    assert caught.value.hint == CheckpointError.advice


@pytest.mark.parametrize("turning", [refusals, read_refusals])
def test_too_many_open_files_have_a_hint_of_their_own(turning: Any) -> None:
    with pytest.raises(ConfigError) as caught, turning(Path("a"), ConfigError, "make it readable"):
        raise OSError(24, "Too many open files")
    assert caught.value.hint and "raise `ulimit -n`" in caught.value.hint


def test_refusals_passes_other_errors_through() -> None:
    with pytest.raises(ValueError, match="not the disk"), refusals("a", ConfigError):
        raise ValueError("not the disk")


def test_read_refusals_of_a_missing_file(tmp_path: Path) -> None:
    file = tmp_path / "none"
    with pytest.raises(ConfigError) as plain, read_refusals(file, ConfigError):
        file.read_bytes()
    assert plain.value.message == f"{file}: No such file or directory"
    with (
        pytest.raises(CorruptCheckpoint) as named,
        read_refusals(file, CorruptCheckpoint, missing="missing"),
    ):
        file.read_bytes()
    assert named.value.message == f"{file}: missing"
    assert named.value.hint == CorruptCheckpoint.advice


def test_read_refusals_of_another_reason(tmp_path: Path) -> None:
    with (
        pytest.raises(CorruptCheckpoint) as caught,
        read_refusals(tmp_path, CorruptCheckpoint, missing="missing"),
    ):
        tmp_path.read_bytes()
    assert caught.value.message == f"{tmp_path}: Is a directory"
    with pytest.raises(ConfigError, match="a: odd words"), read_refusals(Path("a"), ConfigError):
        raise OSError("odd words")


def test_the_error_of_rust_for_a_full_disk_becomes_an_oserror() -> None:
    """As safetensors and tokenizers word it."""
    with pytest.raises(OSError, match="No space left on device") as error, system_errors():
        raise Exception("Error while serializing: No space left on device (os error 28)")
    assert error.value.errno == 28
    with pytest.raises(KeyError), system_errors():
        raise KeyError("another error")


def test_a_model_larger_than_a_file_may_be_is_one_error(tmp_path: Path) -> None:
    """The libraries' own writing fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    tokenizer = load_tokenizer(str(SAMPLE_TOKENIZER))
    model = load_model("tiny", tokenizer, seed=1)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
        for save in (
            partial(save_pretrained, model, tokenizer, tmp_path / "model"),
            partial(tokenizer.save, tmp_path / "tokenizer"),
        ):
            with (
                pytest.raises(CheckpointError, match="can't be written: File too large"),
                refusals(tmp_path, CheckpointError, "free some space"),
            ):
                save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
