"""presets: their shapes, vocabularies and seeds."""

import re

import pytest
import torch

from sftctl.config.keys import documentation
from sftctl.model.load import load_model
from sftctl.model.presets import PRESETS, preset_config
from sftctl.model.tokenizer.tokenizer import ChatTokenizer
from tests.toys.docs.pages import DOCS_FOLDER


def num_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def on_meta(name: str, vocab_size: int) -> torch.nn.Module:
    """The model without memory."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: torch.nn.Module
        model = AutoModelForCausalLM.from_config(preset_config(name, vocab_size))
    return model


def test_every_preset_has_its_number_of_parameters() -> None:
    bundled_vocab_size = 2048
    assert {name: num_parameters(on_meta(name, bundled_vocab_size)) for name in PRESETS} == {
        "tiny": 229_760,
        "small": 3_672_832,
        "minimind-3": 63_912_192,
        "minimind-3-moe": 198_416_640,
    }


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_documented(name: str) -> None:
    page = (DOCS_FOLDER / "train.md").read_text(encoding="utf-8")
    assert f"\n| `{name}` |" in page
    assert name in re.findall(r"[\w-]+", documentation()["model.name"])


def test_minimind_3_has_minimind_3s_shape() -> None:
    config = preset_config("minimind-3", 6400)
    assert config.model_type == "qwen3"
    assert (config.hidden_size, config.num_hidden_layers, config.intermediate_size) == (
        768,
        8,
        2432,
    )
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (8, 4, 96)
    assert config.tie_word_embeddings is True
    assert config.rope_parameters["rope_theta"] == 1e6


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_an_embedding_for_every_id_of_its_tokenizer(name: str) -> None:
    assert preset_config(name, 9000).vocab_size == 9000
    assert preset_config("minimind-3", 2048).vocab_size == 6400  # as published
    assert preset_config("tiny", 2048).vocab_size == 2048


def test_the_seed_decides_a_presets_weights(bundled: ChatTokenizer) -> None:
    one, again, other = (load_model("tiny", bundled, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert not torch.equal(one["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_a_preset_is_float32_and_has_the_tokenizers_special_tokens(bundled: ChatTokenizer) -> None:
    model = load_model("tiny", bundled, 0)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config.eos_token_id == bundled.hf.eos_token_id == 2
    assert model.config.pad_token_id == bundled.hf.pad_token_id == 0
