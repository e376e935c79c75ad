"""A vocabulary comes back from a .gguf file; one that llama.cpp encodes differently is refused."""

from pathlib import Path

import gguf
import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from sftctl.errors import CheckpointError, ConfigError
from sftctl.model.tokenizer.tokenizer import ChatTokenizer
from sftctl.trained.gguf.file import write_gguf
from sftctl.trained.gguf.proof import prove
from sftctl.trained.gguf.sentencepiece import SentencePiece
from sftctl.trained.gguf.vocabulary import name_for
from tests.toys.gguf import SIZES, refusal, sentencepiece, trained


def test_a_vocabulary_with_byte_fallback_comes_back(tmp_path: Path) -> None:
    tokenizer = sentencepiece()
    model = trained(LlamaConfig(**(SIZES | {"vocab_size": 768}), head_dim=16), tokenizer)
    file = tmp_path / "x.gguf"
    write_gguf(model.model, tokenizer, file, "float32", "toy")
    assert prove(model, file, "float32").tokens > 300
    reader = gguf.GGUFReader(file)
    assert reader.get_field("tokenizer.ggml.model").contents() == "llama"
    assert reader.get_field("tokenizer.ggml.add_space_prefix").contents() is True
    types = reader.get_field("tokenizer.ggml.token_type").contents()
    assert types[:5] == [2, 3, 3, 6, 6]  # unknown, control, control, bytes
    assert types[-1] == 5  # the embeddings have more rows than there are tokens


def test_a_vocabulary_without_spaces_of_its_own_is_refused(tmp_path: Path) -> None:
    tokenizer = sentencepiece()
    tokenizer.hf.backend_tokenizer.normalizer = normalizers.NFC()
    message = refusal(LlamaConfig(**SIZES, head_dim=16), tokenizer, tmp_path)
    assert message.startswith("this tokenizer has byte fallback and does not write spaces as ▁; ")


def test_a_space_before_the_first_text_only_is_refused(tmp_path: Path) -> None:
    tokenizer = sentencepiece()
    tokenizer.hf.backend_tokenizer.normalizer = normalizers.NFC()
    tokenizer.hf.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    message = refusal(LlamaConfig(**SIZES, head_dim=16), tokenizer, tmp_path)
    assert message.startswith("the tokenizer puts a space before the first text only")


def test_a_tokenizer_that_is_no_bpe_is_refused(tmp_path: Path) -> None:
    hf = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a")))
    message = refusal(LlamaConfig(**SIZES, head_dim=16), ChatTokenizer(hf, "toy"), tmp_path)
    assert message == "llama.cpp has no tokenizer of the type WordLevel"


TEXT = "<|user|>\n Is  1+1 = 2?\t<|end|> \n<|assistant|>\nYes, ë ☃!<|end|>\n<s>\n</s>"


@pytest.mark.parametrize("strips", [False, True], ids=["llama", "phi 3"])
def test_llama_cpps_algorithm_encodes_as_the_tokenizer_itself(tmp_path: Path, strips: bool) -> None:
    """Phi 3's special tokens include the spaces after them."""
    tokenizer = sentencepiece(strips=strips)
    model = trained(LlamaConfig(**(SIZES | {"vocab_size": 768}), head_dim=16), tokenizer)
    file = tmp_path / "x.gguf"
    write_gguf(model.model, tokenizer, file, "float32", "toy")
    read = SentencePiece.read(file)
    for text in (TEXT, "", " ", "a" * 50, *TEXT.split("<|end|>")):
        assert read.encode(text) == tokenizer.encode(text).tolist()
    assert prove(model, file, "float32").tokens > 300
    reader = gguf.GGUFReader(file)
    name = reader.get_field("general.name").contents()
    assert name == ("toy (phi-3)" if strips else "toy")
    [end] = tokenizer.encode("<|end|>").tolist()
    assert reader.get_field("tokenizer.ggml.eot_token_id").contents() == end


def test_merges_that_llama_cpp_makes_differently_are_found(tmp_path: Path) -> None:
    """It joins any two tokens whose join is a token, also t and he."""
    tokenizer = sentencepiece(merges=(("h", "e"), ("t", "h"), ("th", "e")))
    model = trained(LlamaConfig(**(SIZES | {"vocab_size": 768}), head_dim=16), tokenizer)
    write_gguf(model.model, tokenizer, tmp_path / "x.gguf", "float32", "toy")
    with pytest.raises(CheckpointError, match="its tokenizer encodes .* differently"):
        prove(model, tmp_path / "x.gguf", "float32")


def test_a_name_that_changes_how_llama_cpp_reads_a_tokenizer_is_changed() -> None:
    plain = sentencepiece()
    assert name_for(plain, "my-Phi-3-mini") == "my-Phi 3-mini"
    assert name_for(plain, "phi3") == "phi 3" and name_for(plain, "modern-bert") == "modern bert"
    assert name_for(plain, "model") == "model"


def test_a_token_that_treats_spaces_differently_is_refused() -> None:
    for change in ({"lstrip": True}, {"rstrip": True}, {"single_word": True}):
        tokenizer = sentencepiece()
        tokenizer.hf.add_tokens([AddedToken("<|x|>", special=True, **change)])
        with pytest.raises(ConfigError, match=r"does not treat the spaces next to <\|x\|>"):
            name_for(tokenizer, "toy")
