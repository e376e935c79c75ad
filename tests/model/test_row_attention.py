"""Rows laid end to end compute what each computes alone; a model in which they mix is detected."""

from itertools import pairwise
from typing import Any

import pytest
import torch

from sftctl.model.row_attention import (
    ROWS,
    all_rows,
    attention_by_rows,
    own_attention,
    use_row_attention,
    why_rows_mix,
)

SIZES = {
    "vocab_size": 200, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16}

SEPARATE: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("LlamaConfig", {}),
    "Mistral, sliding window": ("MistralConfig", {"sliding_window": 16}),
    "Qwen 2": ("Qwen2Config", {}),
    "Qwen 3": ("Qwen3Config", {"head_dim": 16}),
    "Qwen 3 MoE": ("Qwen3MoeConfig", MOE),
    "Llama 4, chunks": (
        "Llama4TextConfig",
        {"head_dim": 16, "num_local_experts": 4, "attention_chunk_size": 16},
    ),
    "Mixtral": ("MixtralConfig", {"num_local_experts": 4}),
    "Gemma 3, sliding window": ("Gemma3TextConfig", {"head_dim": 16, "sliding_window": 16}),
    "Phi 3": ("Phi3Config", {}),
    "OLMo": ("OlmoConfig", {}),
    "OLMo 2": ("Olmo2Config", {}),
    "SmolLM 3": ("SmolLM3Config", {}),
    "Granite": ("GraniteConfig", {}),
    "GPT-2, learned positions": ("GPT2Config", {"n_embd": 64, "n_layer": 2, "n_head": 4}),
    "GPT-NeoX": ("GPTNeoXConfig", {}),
    "GPT-J, no AttentionInterface": (
        "GPTJConfig",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8},
    ),
}
MIXED: dict[str, tuple[str, dict[str, Any], str]] = {
    "Gemma 2, soft-capping": (
        "Gemma2Config",
        {"head_dim": 16},
        "ValueError: attention by rows does not support softcap",
    ),
    "gpt-oss, sinks": (
        "GptOssConfig",
        {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2},
        "ValueError: attention by rows does not support s_aux",
    ),
    "LFM 2, convolutions": (
        "Lfm2Config",
        {"layer_types": ["conv", "full_attention"]},
        "the largest relative difference is",
    ),
    "Falcon H1, state space": (
        "FalconH1Config",
        {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8},
        "the largest relative difference is",
    ),
    "Mamba, no position_ids": (
        "MambaConfig",
        {"state_size": 8},
        "the largest relative difference is",
    ),
    "Bloom, no position_ids": (
        "BloomConfig",
        {"n_layer": 2, "n_head": 4},
        "the largest relative difference is",
    ),
}


def make_model(config_class: str, **changes: Any) -> Any:
    import transformers

    config = getattr(transformers, config_class)(**{**SIZES, **changes})
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)


@pytest.mark.parametrize("family", SEPARATE)
def test_rows_end_to_end_equal_each_row_alone(family: str) -> None:
    name, changes = SEPARATE[family]
    model = make_model(name, **changes)
    before = model.config._attn_implementation
    assert why_rows_mix(model, longest_row=100) is None
    assert model.config._attn_implementation == before
    assert model.training is True


@pytest.mark.parametrize("family", MIXED)
def test_a_model_in_which_rows_mix_is_detected(family: str) -> None:
    name, changes, reason = MIXED[family]
    model = make_model(name, **changes)
    before = model.config._attn_implementation
    found = why_rows_mix(model, longest_row=100)
    assert found is not None and found.startswith(reason)
    assert model.config._attn_implementation == before


class WithoutWindow:
    """A configuration whose sliding window a layer does not see."""

    sliding_window = None

    def __init__(self, config: Any) -> None:
        self._config = config

    def __getattr__(self, name: str) -> Any:
        return getattr(self._config, name)


@pytest.mark.parametrize(("longest_row", "mixes"), [(16, False), (17, True)])
def test_the_probe_is_longer_than_the_window_only_if_the_data_is(
    longest_row: int, mixes: bool
) -> None:
    model = make_model("MistralConfig", sliding_window=16)
    for layer in model.model.layers:  # attention by rows is not told of the window, the mask is
        layer.self_attn.config = WithoutWindow(model.config)
    assert (why_rows_mix(model, longest_row) is not None) is mixes


@pytest.mark.parametrize(("longest_row", "mixes"), [(64, False), (65, True)])
def test_a_rope_that_scales_with_the_longest_position_takes_one_row_a_pass(
    longest_row: int, mixes: bool
) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    model = make_model("LlamaConfig", max_position_embeddings=64, rope_parameters=rope)
    found = why_rows_mix(model, longest_row)
    assert (found is not None) is mixes
    if mixes:
        assert found == "dynamic RoPE scaling, with rows longer than 64 tokens"


def test_a_model_that_has_no_largest_position_is_proved_too() -> None:
    """Bloom's configuration has no max_position_embeddings."""
    import transformers

    config = transformers.BloomConfig(vocab_size=200, hidden_size=64, n_layer=1, n_head=4)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    assert not hasattr(model.config, "max_position_embeddings")
    assert str(why_rows_mix(model, longest_row=100)).startswith("the largest relative difference")


def test_a_rope_of_one_layer_type_counts() -> None:
    rope = {
        "full_attention": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    model = make_model("LlamaConfig", max_position_embeddings=64)
    model.config.rope_parameters = rope
    found = why_rows_mix(model, longest_row=65)
    assert found == "dynamic RoPE scaling, with rows longer than 64 tokens"


def heads(seed: int, num_heads: int, length: int) -> torch.Tensor:
    return torch.randn(1, num_heads, length, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("window", [None, 4, 9])
@pytest.mark.parametrize("groups", [1, 2])
def test_each_row_is_attended_to_by_itself(groups: int, window: int | None) -> None:
    lengths = [5, 9, 3]
    query, key, value = heads(0, 4, 17), heads(1, 4 // groups, 17), heads(2, 4 // groups, 17)
    row_lengths = torch.tensor([*lengths, 0, 0], dtype=torch.int32)
    ours, _ = attention_by_rows(
        torch.nn.Identity(), query, key, value, None, row_lengths=row_lengths,
        scaling=0.3, sliding_window=window, position_ids=torch.zeros(1, 17),
    )  # fmt: skip
    key, value = (each.repeat_interleave(groups, 1) for each in (key, value))
    end = 0
    for length in lengths:
        at = slice(end, end := end + length)
        scores = query[:, :, at] @ key[:, :, at].transpose(2, 3) * 0.3
        place = torch.arange(length)
        distance = place[:, None] - place[None, :]
        hidden = (distance < 0) | (distance >= (window or 99))
        expected = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ value[:, :, at]
        torch.testing.assert_close(ours[:, at], expected.transpose(1, 2))


def as_documented(
    query: torch.Tensor,  # (T, H, D)
    key: torch.Tensor,
    value: torch.Tensor,
    ends: torch.Tensor,
    *others: Any,  # the keys' ends, the longest row twice
    **options: Any,
) -> torch.Tensor:
    """What torch documents of `varlen_attn`, whose kernel needs a GPU."""
    assert others[0] is ends and ends.dtype == torch.int32
    assert ends[0] == 0 and ends[-1] == len(query) == len(key)
    before, after = options["window_size"]
    outputs = []
    for start, end in pairwise(ends.tolist()):
        assert end - start <= min(others[1:])
        place = torch.arange(end - start)
        back = place[:, None] - place[None, :]
        is_seen = (back >= -after) & ((back <= before) | (before == -1))
        q, k, v = (each[start:end].transpose(0, 1)[None] for each in (query, key, value))
        output = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_seen, scale=options["scale"], enable_gqa=options["enable_gqa"]
        )
        outputs.append(output[0].transpose(0, 1))
    return torch.cat(outputs)


@pytest.mark.parametrize("window", [None, 4, 1])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_one_call_for_all_rows_computes_what_each_row_alone_computes(
    groups: int, window: int | None, scaling: float | None
) -> None:
    lengths = torch.tensor([7, 1, 12, 0, 0], dtype=torch.int32)
    query, key, value = heads(1, 4, 20), heads(2, 4 // groups, 20), heads(3, 4 // groups, 20)
    options = {"scaling": scaling, "sliding_window": window}
    at_once = all_rows(query, key, value, lengths, 12, as_documented, **options)
    by_row, _ = attention_by_rows(
        torch.nn.Identity(), query, key, value, None, row_lengths=lengths, longest_row=12, **options
    )
    torch.testing.assert_close(at_once, by_row)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"softcap": 30.0}, "softcap"),
        ({"s_aux": torch.zeros(4)}, "s_aux"),
        ({"is_causal": False}, "a mask that is not causal"),
        ({"attention_mask": torch.ones(1, 1, 4, 4)}, "a mask that is not causal"),
    ],
)
def test_options_that_are_not_supported_are_refused(options: dict[str, Any], named: str) -> None:
    one = heads(0, 4, 4)
    mask = options.pop("attention_mask", None)
    with pytest.raises(ValueError, match=f"attention by rows does not support {named}"):
        attention_by_rows(
            torch.nn.Identity(), one, one, one, mask, row_lengths=torch.tensor([4]), **options
        )


def test_options_that_are_off_are_fine() -> None:
    one = heads(0, 4, 4)
    attention_by_rows(
        torch.nn.Identity(), one, one, one, None,
        row_lengths=torch.tensor([4]), softcap=None, s_aux=None, dropout=0.0,
    )  # fmt: skip


def test_generation_uses_the_models_own_attention() -> None:
    model = make_model("LlamaConfig")
    own = use_row_attention(model)
    with own_attention(model, own):
        assert model.config._attn_implementation == own
        model.generate(torch.ones(1, 3, dtype=torch.long), max_new_tokens=2, do_sample=False)
    assert model.config._attn_implementation == ROWS
