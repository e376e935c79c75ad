"""The model families that sftctl can write for llama.cpp, and the settings that each can have."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sftctl.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True, slots=True)
class Family:
    """How llama.cpp stores a family of models."""

    name: str
    """The family's name in `general.architecture`."""
    pairs_neighbours: bool = False
    """True: RoPE rotates pairs of neighbouring numbers of a head. False: it rotates pairs from the
    two halves of a head. With True, query and key weights are stored in another order of rows."""
    norm_offset: float = 0.0
    """A number that is added to norm weights, because Gemma multiplies by one plus the weight."""
    layer_pattern: int | None = None
    """n: every n-th layer attends to the complete text, all others to a window. In llama.cpp, this
    number is fixed."""
    activation: str = "silu"
    normalizes_experts: bool | None = None
    """Whether the weights of the chosen experts are scaled to sum to one; None: no experts."""
    has_biases: bool = False
    """Whether attention may have biases."""
    needs_head: bool = False
    """Whether a head that is tied to the embeddings must be stored too."""


FAMILIES = {
    "llama": Family("llama", pairs_neighbours=True, has_biases=True),
    "mistral": Family("llama", pairs_neighbours=True, has_biases=True),
    "qwen2": Family("qwen2", has_biases=True),
    "qwen3": Family("qwen3"),
    "qwen2_moe": Family("qwen2moe", normalizes_experts=False, has_biases=True, needs_head=True),
    "qwen3_moe": Family("qwen3moe", normalizes_experts=True),
    "gemma2": Family("gemma2", norm_offset=1.0, layer_pattern=2, activation="gelu_pytorch_tanh"),
    "gemma3_text": Family(
        "gemma3", norm_offset=1.0, layer_pattern=6, activation="gelu_pytorch_tanh"
    ),
    "phi3": Family("phi3"),
}
"""transformers' `model_type` -> family. The `gguf` package and transformers can read them all."""

_GEMMA3_LOCAL_THETA = 10_000.0  # fixed in llama.cpp, for Gemma 3's layers with a window
_YARN = {
    "attention_factor": None,
    "mscale": None,
    "mscale_all_dim": None,
    "beta_fast": 32,
    "beta_slow": 1,
    "truncate": True,
}
"""Settings of yarn scaling that a .gguf file can't store, and the values that llama.cpp assumes."""


def family_of(config: "PretrainedConfig") -> Family:
    """The family of a model. ConfigError if llama.cpp would compute the model differently."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise ConfigError(
            f"the architecture {config.model_type} can't be written as .gguf",
            hint=f"these can: {', '.join(sorted(FAMILIES))}; others: --format hf",
        )
    for problem in _differences(config, family):
        raise ConfigError(
            f"{problem}, and llama.cpp computes {family.name} differently",
            hint="export with --format hf: transformers computes it as it was trained",
        )
    return family


def _differences(config: Any, family: Family) -> Iterator[str]:
    """Settings of the configuration that llama.cpp does not support."""
    activation = getattr(config, "hidden_act", None) or getattr(config, "hidden_activation", None)
    if activation != family.activation:
        yield f"the activation is {activation}"
    yield from _rope_differences(rope_of(config), family)
    if getattr(config, "attention_bias", False) and not family.has_biases:
        yield "attention_bias is True"
    if family.layer_pattern is not None:
        yield from _gemma_differences(config, family.name, family.layer_pattern)
    if family.normalizes_experts is not None:
        if config.norm_topk_prob != family.normalizes_experts:
            yield f"norm_topk_prob is {config.norm_topk_prob}"
        if config.mlp_only_layers or config.decoder_sparse_step != 1:
            yield "some layers have no experts"


def _gemma_differences(config: Any, name: str, pattern: int) -> Iterator[str]:
    if config.query_pre_attn_scalar != config.head_dim:
        yield f"query_pre_attn_scalar is {config.query_pre_attn_scalar}, not head_dim"
    if list(config.layer_types) != _layer_types(len(config.layer_types), pattern):
        yield "layer_types are not in the usual order"
    if name == "gemma3" and rope_of(config, local=True)["rope_theta"] != _GEMMA3_LOCAL_THETA:
        yield "rope_theta of the layers with a window is not 10,000"
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if name == "gemma2" and not getattr(config, key):
            yield f"{key} is {getattr(config, key)}"


def _rope_differences(rope: dict[str, Any], family: Family) -> Iterator[str]:
    kind = rope.get("rope_type", "default")
    known = ("default", "linear", "yarn", *(("llama3",) if family.name == "llama" else ()))
    if kind not in known:
        yield f"the RoPE scaling is {kind}"
    if rope.get("partial_rotary_factor", 1.0) != 1.0 and family.name != "phi3":
        yield f"partial_rotary_factor of RoPE is {rope['partial_rotary_factor']}"
    for key, usual in _YARN.items():
        if kind == "yarn" and rope.get(key, usual) not in (usual, None):
            yield f"{key} of RoPE is {rope[key]}"


def _layer_types(count: int, pattern: int) -> list[str]:
    return [
        "full_attention" if (layer + 1) % pattern == 0 else "sliding_attention"
        for layer in range(count)
    ]


def rope_of(config: Any, local: bool = False) -> dict[str, Any]:
    """The RoPE settings of the layers with full attention; with `local`, of those with a window."""
    rope: dict[str, Any] = config.rope_parameters
    by_layer = rope.get("sliding_attention" if local else "full_attention")
    return rope if by_layer is None else by_layer
