"""Models made from a configuration, with random weights."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_SHAPES: dict[str, dict[str, Any]] = {
    # for tests: a step takes milliseconds, and the model learns little
    "tiny": dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=2, head_dim=16, intermediate_size=192),
    # the default: learns the rules of the bundled sample in two minutes on two cores
    "small": dict(hidden_size=256, num_hidden_layers=4, num_attention_heads=4,
                  num_key_value_heads=2, head_dim=64, intermediate_size=768),
    # MiniMind-3: a Qwen3 configuration, 63.9M parameters with its vocabulary of 6400
    "minimind-3": dict(hidden_size=768, num_hidden_layers=8, num_attention_heads=8,
                       num_key_value_heads=4, head_dim=96, intermediate_size=2432,
                       vocab_size=6400, max_position_embeddings=32768,
                       rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
}  # fmt: skip
# The same model, but each layer has four FFNs of this size and sends every token to one of them:
# 198M parameters, 64M of them active.
_SHAPES["minimind-3-moe"] = _SHAPES["minimind-3"] | dict(
    num_experts=4, num_experts_per_tok=1, moe_intermediate_size=2432,
    norm_topk_prob=True, router_aux_loss_coef=5e-4,
)  # fmt: skip

PRESETS = tuple(_SHAPES)


def is_preset(name: str) -> bool:
    """Whether `name` is a preset, even if a folder has the same name."""
    return name in PRESETS


def preset_config(name: str, vocab_size: int, **changes: int | None) -> "PretrainedConfig":
    """The `transformers` configuration of a preset, with a vocabulary of at least `vocab_size`.

    `changes` replace other values, such as the ids of special tokens.
    """
    from transformers import Qwen3Config, Qwen3MoeConfig

    shape = {"max_position_embeddings": 4096, **_SHAPES[name]}
    shape["vocab_size"] = max(shape.get("vocab_size", 0), vocab_size)
    cls = Qwen3MoeConfig if "num_experts" in shape else Qwen3Config
    return cls(tie_word_embeddings=True, attention_dropout=0.0, **shape | changes)
