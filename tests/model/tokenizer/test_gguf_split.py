"""gguf_split: the tokenizer of a .gguf file splits text as its name says, or one line warns."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from sftctl.jsonio import dump_canonical, loads
from sftctl.model.source import on_stderr
from sftctl.model.tokenizer.splits import SPLITS
from sftctl.model.tokenizer.tokenizer import load_tokenizer

TEXTS = (
    "In 1999 and 2024, 12345 people's 7 cats don't sleep.\n\n  x = y+3.14  // \t ok\r\n",
    "汉字12と日本語, Ελληνικά 33 हिन्दी१२३ ქართული — “quoted”!?\n",
    "foo(bar)[0] == `baz` != <|x|> $100.00 10,000 a1b2 \u3000 end  ",
)
LONG = " ".join(TEXTS) + " 10 20 30 11 22 100 200 1234 5678 the then. (a) (b) ,\n .\n don't can't"

# What the models' own tokenizer.json files say, for some of the names.
ORIGINALS: dict[str, list[Any]] = {
    "smollm": [pre_tokenizers.Digits(individual_digits=True)],
    "starcoder": [pre_tokenizers.Digits(individual_digits=True)],
    "command-r": [pre_tokenizers.Digits(individual_digits=True)],
    "deepseek-coder": [
        pre_tokenizers.Split(Regex("[\r\n]"), "isolated"),
        pre_tokenizers.Split(Regex(r"\s?\p{L}+"), "isolated"),
        pre_tokenizers.Split(Regex(r"\s?\p{P}+"), "isolated"),
        pre_tokenizers.Split(Regex("[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"), "isolated"),
        pre_tokenizers.Digits(individual_digits=True),
    ],
}


def trained(text: str) -> Tokenizer:
    """A small byte-level tokenizer; its merges know no words, so that each split shows."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([text] * 2, trainer)
    return tokenizer


def written(file: Path, tokenizer: Tokenizer, pre: str | None) -> Path:
    """A .gguf file with this vocabulary and these merges, and the name of a split."""
    import gguf

    content = loads(tokenizer.to_str().encode())["model"]
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(1)
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    vocabulary: dict[str, int] = content["vocab"]
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    writer.add_token_list([*tokens, "<|end|>"])
    writer.add_token_types([1] * len(tokens) + [3])
    writer.add_token_merges([" ".join(pair) for pair in content["merges"]])
    writer.add_eos_token_id(len(tokens))
    writer.add_chat_template("{{ messages }}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def with_words(tokenizer: Tokenizer, steps: Sequence[Any], *, by_words: bool) -> Tokenizer:
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=by_words)
    other = Tokenizer.from_str(tokenizer.to_str())
    other.pre_tokenizer = pre_tokenizers.Sequence([*steps, bytes_])
    return other


@pytest.mark.parametrize("pre", ["smollm", "starcoder", "command-r", "deepseek-coder"])
def test_a_named_split_is_that_of_the_models_own_tokenizer(tmp_path: Path, pre: str) -> None:
    vocabulary = trained(LONG)
    by_words = pre != "deepseek-coder"
    original = with_words(vocabulary, ORIGINALS[pre], by_words=by_words)
    tokenizer = load_tokenizer(str(written(tmp_path / "x.gguf", vocabulary, pre)))
    for text in TEXTS:
        assert [*tokenizer.encode(text)] == original.encode(text).ids
    plain = with_words(vocabulary, [], by_words=True)
    assert any(original.encode(text).ids != plain.encode(text).ids for text in TEXTS)
    tokenizer.save(tmp_path / "saved")
    again = load_tokenizer(str(tmp_path / "saved"))
    assert [*again.encode(TEXTS[0])] == [*tokenizer.encode(TEXTS[0])]


@pytest.mark.parametrize("pre", SPLITS)
def test_every_named_split_is_built_without_a_warning(
    tmp_path: Path, pre: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = load_tokenizer(str(written(tmp_path / "x.gguf", trained(LONG), pre)))
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("pre", ["llama-bpe", "lfm2", "glm4", "tekken", "qwen2", "smollm", "gpt-2"])
def test_a_word_that_is_a_token_is_built_by_merges_unless_the_name_ignores_them(
    tmp_path: Path, pre: str
) -> None:
    """The token `wxyz` has no merge."""
    vocabulary = trained(LONG)
    content = loads(vocabulary.to_str().encode())
    content["model"]["vocab"]["wxyz"] = token = len(content["model"]["vocab"])
    file = written(tmp_path / "x.gguf", Tokenizer.from_str(dump_canonical(content).decode()), pre)
    tokenizer = load_tokenizer(str(file))
    ignores = pre in ("llama-bpe", "lfm2", "glm4", "tekken")
    assert ([*tokenizer.encode("wxyz")] == [token]) == ignores
    tokenizer.save(tmp_path / "saved")
    again = load_tokenizer(str(tmp_path / "saved"))
    assert [*again.encode("wxyz 12")] == [*tokenizer.encode("wxyz 12")]


@pytest.mark.parametrize("pre", ["unheard-of", "kimi-k2", None])
def test_an_unknown_split_that_matters_is_a_warning(
    tmp_path: Path, pre: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    on_stderr.cache_clear()
    file = written(tmp_path / "x.gguf", trained(LONG), pre)
    load_tokenizer(str(file))
    [line] = capsys.readouterr().err.splitlines()
    named = f"its split is named {pre!r}, which is not known here" if pre else "it names no split"
    assert line.startswith(f"warning: {file}: {named}: text is cut into words as GPT-2 does")
    assert "give --tokenizer" in line


@pytest.mark.parametrize("pre", ["unheard-of", None, "phi-2"])
def test_a_split_that_makes_no_difference_causes_no_warning(
    tmp_path: Path, pre: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """No token is of two words of GPT-2's, of two digits, or of a space and a digit."""
    on_stderr.cache_clear()
    digits = pre_tokenizers.Digits(individual_digits=True)
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    words = pre_tokenizers.Sequence([digits, gpt2])
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = words
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([LONG] * 2, trainer)
    file = written(tmp_path / "x.gguf", tokenizer, pre)
    loaded = load_tokenizer(str(file))
    assert capsys.readouterr().err == ""
    assert all([*loaded.encode(text)] == tokenizer.encode(text).ids for text in TEXTS)
