"""An adapter: its targets and their short names, its first weights, and its saved tensors."""

from typing import Any

import pytest
import torch

from sftctl.config.adapter import AdapterConfig
from sftctl.errors import ConfigError
from sftctl.model.adapter.lora import (
    add_adapter,
    doubts,
    lora_config,
    saved_tensors,
    short_names,
    target_layers,
)
from tests.toys.models import toy_base

BLOCK = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def adapted(family: str = "llama", seed: int = 0, **settings: Any) -> Any:
    model = toy_base(family)
    add_adapter(model, AdapterConfig(lora=True, **({"rank": 4} | settings)), seed)
    return model


def trained(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def test_targets_are_all_linear_layers_of_the_blocks_by_short_names() -> None:
    model = toy_base("llama")
    layers = target_layers(model, None)
    assert len(layers) == 2 * len(BLOCK)
    assert short_names(model, layers) == sorted(BLOCK)
    assert all("lm_head" not in name for name in layers)


@pytest.mark.parametrize(
    ("patterns", "short"),
    [
        (["q_proj", "mlp.up_proj"], ["q_proj", "up_proj"]),
        (["*.layers.0.*_proj"], sorted(f"0.{part}" for part in (
            "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
            "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
        ))),
    ],
)  # fmt: skip
def test_patterns_choose_targets(patterns: list[str], short: list[str]) -> None:
    model = toy_base("llama")
    layers = target_layers(model, patterns)
    assert short_names(model, layers) == short
    add_adapter(model, AdapterConfig(lora=True, rank=2, targets=patterns), 0)
    assert len([name for name in trained(model) if "lora_A" in name]) == len(layers)


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        (
            {"targets": ["q_proj", "qkv"]},
            "adapter.targets: qkv matches no linear layer of the blocks",
            "there are q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj; "
            "adapter.modules_to_save trains other modules",
        ),
        (
            {"modules_to_save": ["output"]},
            "adapter.modules_to_save: the model has no module output",
            "outside of its blocks are embed_tokens, norm, lm_head; or embeddings, head",
        ),
    ],
)
def test_a_name_that_matches_nothing_is_refused_with_those_that_exist(
    settings: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        adapted(**settings)
    assert (caught.value.message, caught.value.hint) == (message, hint)


def test_the_first_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(5)
    one = trained(adapted(seed=3))
    torch.rand(7)
    narrow = toy_base().bfloat16()
    add_adapter(narrow, AdapterConfig(lora=True, rank=4), 3)
    for other in (trained(adapted(seed=3)), trained(narrow)):
        assert all(torch.equal(one[name], other[name]) for name in one)
    other = trained(adapted(seed=4))
    assert not torch.equal(*(next(iter(weights.values())) for weights in (one, other)))


def test_a_new_adapter_changes_nothing() -> None:
    ids = torch.arange(3, 20)[None]
    kinds: list[dict[str, Any]] = [{}, {"use_dora": True}, {"use_rslora": True}]
    for settings in kinds:
        model = adapted(**settings).eval()
        assert torch.allclose(model(ids).logits, toy_base().eval()(ids).logits, atol=1e-5)


def test_only_the_adapter_and_whole_modules_are_trained_and_saved() -> None:
    model = adapted(modules_to_save=["lm_head"])
    assert {name for name in trained(model) if "lora_" not in name} == {"lm_head.weight"}
    assert saved_tensors(model).keys() == trained(model).keys()
    assert all(tensor.dtype == torch.float32 for tensor in saved_tensors(model).values())
    assert lora_config(model).modules_to_save == ["lm_head"]
    assert lora_config(adapted(modules_to_save=["head"])).modules_to_save == ["lm_head"]
    names = {f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)}
    both = adapted(modules_to_save=["q_proj"], targets=["k_proj"])
    assert {name for name in saved_tensors(both) if "lora_" not in name} == names
    plain = toy_base()
    assert saved_tensors(plain).keys() == plain.state_dict().keys()


def test_a_tied_weight_that_is_saved_whole_has_both_its_names() -> None:
    model = toy_base(tie_word_embeddings=True)
    add_adapter(model, AdapterConfig(lora=True, rank=4, modules_to_save=["embed_tokens"]), 0)
    names = {name for name in saved_tensors(model) if "lora_" not in name}
    assert names == {"model.embed_tokens.weight", "lm_head.weight"}


def test_a_rank_above_a_dimension_and_experts_without_adapter_are_warnings() -> None:
    assert list(doubts(adapted())) == []
    assert list(doubts(adapted(rank=12))) == [
        "adapter.rank: 12 is above the smallest dimension of k_proj (8): a smaller rank trains as "
        "much"
    ]
    [line] = doubts(adapted("qwen3_moe"))
    assert line == (
        "the experts get no adapter: model.layers.0.mlp.experts.gate_up_proj and similar "
        "tensors hold all experts, and are not linear layers"
    )
