"""The template `chatml`, which needs no file, for tokenizers with and without its tokens."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from sftctl.config.load import load_config
from sftctl.config.schema import DataConfig
from sftctl.data.prepare.prepare import prepare_store
from sftctl.data.sample import SAMPLE_TOKENIZER
from sftctl.data.storage.settings import require_settings
from sftctl.errors import ConfigError, DataError
from sftctl.model.tokenizer.tokenizer import load_tokenizer
from tests.toys.data import row, written

TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]


def without_its_tokens(folder: Path, eos: str | None) -> str:
    """A tokenizer without the token `<|im_end|>`."""
    shutil.copytree(SAMPLE_TOKENIZER, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text().replace("<|im_end|>", "<|end|>")
        (folder / name).write_text(text)
    tokenizer = load_tokenizer(str(folder))
    tokenizer.hf.eos_token = eos
    tokenizer.save(folder)
    return str(folder)


def test_turns_end_with_im_end_or_else_with_the_eos_token(tmp_path: Path) -> None:
    usual = load_tokenizer(str(SAMPLE_TOKENIZER), "chatml")
    expected = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>\n"
    assert usual.render(TURNS) == expected
    assert usual.render(TURNS[:1], None, True).endswith("<|im_start|>assistant\n")
    other = load_tokenizer(without_its_tokens(tmp_path / "other", "<|end|>"), "chatml")
    assert other.render(TURNS) == expected.replace("<|im_end|>", "<|end|>")


def test_without_a_token_that_ends_a_turn_it_is_refused(tmp_path: Path) -> None:
    folder = without_its_tokens(tmp_path / "other", None)
    with pytest.raises(ConfigError, match="neither <|im_end|> nor an EOS token") as caught:
        load_tokenizer(folder, "chatml")
    assert caught.value.hint == "write a template for it: --chat-template FILE"


def test_a_store_of_chatml_is_recognized(tmp_path: Path) -> None:
    rows = written(tmp_path / "rows.jsonl", [row("Hi")])
    data = DataConfig(chat_template="chatml")
    tokenizer = load_tokenizer(str(SAMPLE_TOKENIZER), "chatml")
    manifest = prepare_store([rows], tmp_path / "store", tokenizer, data).manifest
    assert manifest.audit.passed and manifest.num_examples == 1
    require_settings(tmp_path / "store", manifest, data)
    (tmp_path / "other.jinja").write_text("{{ messages }}")
    other = replace(data, chat_template=str(tmp_path / "other.jinja"))
    with pytest.raises(DataError, match="prepared with another chat template than"):
        require_settings(tmp_path / "store", manifest, other)


def test_a_file_that_is_not_there_is_named_with_the_other_way(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nope.jinja: No such file") as caught:
        load_tokenizer(str(SAMPLE_TOKENIZER), tmp_path / "nope.jinja")
    assert caught.value.hint == "name a Jinja file, or chatml"
    assert load_config(None, ["data.chat_template=chatml"]).data.chat_template == "chatml"
