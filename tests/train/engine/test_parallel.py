"""What FSDP shards as one: the decoder layers of any model."""

from typing import Any

import pytest
import torch

from sftctl.model.loss import LossModule
from sftctl.train.engine.parallel import blocks

SIZES = {
    "vocab_size": 11,
    "hidden_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 16,
}


@pytest.mark.parametrize(
    ("model_type", "sizes", "layers"),
    [
        ("qwen3", {"num_key_value_heads": 1, "head_dim": 4}, "model.layers"),
        ("qwen3_moe", {"num_key_value_heads": 1, "num_experts": 4}, "model.layers"),
        ("gpt2", {}, "transformer.h"),
        ("opt", {"ffn_dim": 8, "word_embed_proj_dim": 8}, "model.decoder.layers"),
        ("gpt_neox", {}, "gpt_neox.layers"),
    ],
)
def test_the_blocks_are_the_decoder_layers(
    model_type: str, sizes: dict[str, Any], layers: str
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(model_type, **SIZES, **sizes)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    expected = list(model.get_submodule(layers).children())
    assert len(expected) == 3
    assert list(blocks(LossModule(model))) == expected


def test_a_model_without_module_lists_has_no_blocks() -> None:
    assert list(blocks(LossModule(torch.nn.Linear(2, 2)))) == []


def test_a_module_list_without_parameters_is_not_taken_for_blocks() -> None:
    module = torch.nn.Module()
    module.activations = torch.nn.ModuleList([torch.nn.ReLU()])
    assert list(blocks(module)) == []
