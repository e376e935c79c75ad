"""Each family comes back from a .gguf file with equal logits; what llama.cpp lacks is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from sftctl.model.tokenizer.tokenizer import ChatTokenizer
from sftctl.trained.gguf.file import write_gguf
from sftctl.trained.gguf.proof import prove
from tests.toys.gguf import EXPERTS, GEMMA, MODELS, SCALED, SIZES, refusal, trained


@pytest.mark.parametrize("name", MODELS)
def test_a_family_comes_back_with_equal_logits(
    name: str, tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    model = trained(MODELS[name](), tokenizer)
    for dtype in ("float32", "q8_0"):
        file = tmp_path / f"{dtype}.gguf"
        write_gguf(model.model, tokenizer, file, dtype, "toy")
        proof = prove(model, file, dtype)  # compares each weight and each token id too
        assert proof.rows == 16 and proof.tokens > 300
        assert proof.largest_difference < (1e-4 if dtype == "float32" else 1.0)


SCALING = {"rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 64}


def with_rope(kind: str, **settings: float) -> PretrainedConfig:
    rope = {"rope_type": kind, **SCALING, **settings}
    return LlamaConfig(**SIZES, head_dim=16, rope_parameters=rope)


REFUSED: dict[str, Callable[[], PretrainedConfig]] = {
    "the architecture gpt2 can't be written as .gguf": lambda: GPT2Config(
        n_embd=64, n_layer=1, n_head=4, vocab_size=2048
    ),
    "the activation is gelu": lambda: LlamaConfig(**SIZES, hidden_act="gelu"),
    "the RoPE scaling is dynamic": lambda: with_rope("dynamic"),
    "the RoPE scaling is llama3": lambda: Qwen3Config(**SIZES, rope_parameters=SCALED),
    "partial_rotary_factor of RoPE is 0.5": lambda: with_rope("default", partial_rotary_factor=0.5),
    "attention_factor of RoPE is 1.5": lambda: with_rope("yarn", attention_factor=1.5),
    "mscale of RoPE is 0.7": lambda: with_rope("yarn", mscale=0.7, mscale_all_dim=1.0),
    "beta_fast of RoPE is 16": lambda: with_rope("yarn", beta_fast=16),
    "attention_bias is True": lambda: Qwen3Config(**SIZES, attention_bias=True),
    "query_pre_attn_scalar is 64, not head_dim": lambda: Gemma2Config(
        **SIZES, head_dim=32, query_pre_attn_scalar=64
    ),
    "layer_types are not in the usual order": lambda: Gemma2Config(
        **SIZES, **GEMMA, layer_types=["full_attention"] * 2
    ),
    "attn_logit_softcapping is None": lambda: Gemma2Config(
        **SIZES, **GEMMA, attn_logit_softcapping=None
    ),
    "rope_theta of the layers with a window is not 10,000": lambda: Gemma3TextConfig(
        **SIZES,
        **GEMMA,
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 5e4},
            "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        },
    ),
    "llama.cpp's gemma2 has no tensor for lm_head.weight": lambda: Gemma2Config(
        **SIZES, **GEMMA, tie_word_embeddings=False
    ),
    "norm_topk_prob is False": lambda: Qwen3MoeConfig(**SIZES, **EXPERTS, norm_topk_prob=False),
    "some layers have no experts": lambda: Qwen3MoeConfig(
        **SIZES, **EXPERTS, norm_topk_prob=True, mlp_only_layers=[0]
    ),
    "the tokenizer has 2048 tokens, and the embeddings 2000 rows": lambda: Qwen2Config(
        **(SIZES | {"vocab_size": 2000})
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_model_that_llama_cpp_computes_differently_is_refused(
    message: str, tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    """Seen in llama.cpp 0.3.36: it refuses the file, or computes other logits."""
    assert refusal(REFUSED[message](), tokenizer, tmp_path).startswith(message)
