"""What a .gguf file says about a model: architecture, sizes, and tensors by llama.cpp's names."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sftctl.errors import ConfigError
from sftctl.trained.gguf.families import Family, rope_of

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedModel


def _window(config: Any) -> int | None:
    """The width of the sliding window in tokens; None if no layer has a window."""
    used = getattr(config, "use_sliding_window", True)
    window: int | None = getattr(config, "sliding_window", None) if used else None
    return window or None


def _head_dim(config: Any) -> int:
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(size)


def write_sizes(writer: "GGUFWriter", config: Any, family: Family) -> None:
    """Write the keys from which llama.cpp builds the model."""
    window, head = _window(config), _head_dim(config)
    context = config.max_position_embeddings
    if window is not None and family.layer_pattern is None:
        # llama.cpp has no window for this family. Without one, longer texts would be wrong.
        context = min(context, window)
    elif window is not None:
        writer.add_sliding_window(window)
    writer.add_context_length(context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_key_length(head)
    writer.add_value_length(head)
    _write_rope(writer, rope_of(config), head)
    if family.name == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    if family.name.startswith("gemma") and config.final_logit_softcapping:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if family.normalizes_experts is not None:
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if hasattr(config, "shared_expert_intermediate_size"):
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)


def _write_rope(writer: "GGUFWriter", rope: dict[str, Any], head: int) -> None:
    from gguf import RopeScalingType

    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(head * rope.get("partial_rotary_factor", 1.0)))
    kinds = {"linear": RopeScalingType.LINEAR, "yarn": RopeScalingType.YARN}
    kind = kinds.get(rope.get("rope_type", "default"))
    if kind is None:
        return  # llama3's scaling is written as a tensor
    writer.add_rope_scaling_type(kind)
    writer.add_rope_scaling_factor(rope["factor"])
    if kind == RopeScalingType.YARN:
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def _rope_factors(config: Any) -> torch.Tensor:
    """The factors of Llama 3's RoPE scaling: each frequency is divided by its factor.

    Source: `_compute_llama3_parameters` of transformers. A factor is the inverse frequency without
    scaling, divided by the inverse frequency with scaling.
    """
    from math import pi

    rope, head = rope_of(config), _head_dim(config)
    inverse = 1.0 / rope["rope_theta"] ** (torch.arange(0, head, 2, dtype=torch.float64) / head)
    length, old = 2 * pi / inverse, rope["original_max_position_embeddings"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = ((old / length - low) / (high - low)).clamp(0, 1)
    factors: torch.Tensor = 1 / ((1 - smooth) / rope["factor"] + smooth)
    return factors.float()


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A tensor of the file, before it is rounded to the file's dtype."""

    name: str
    """The name of the model's weight from which this tensor is made."""
    stored_as: str
    """The name of the tensor in llama.cpp."""
    weight: torch.Tensor


def tensors_of(model: "PreTrainedModel", family: Family) -> Iterator[Tensor]:
    """The tensors of the file. A tied head is skipped, unless llama.cpp needs it."""
    import gguf

    config: Any = model.config
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == family.name)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings and not family.needs_head:
            continue
        stem, _, end = name.rpartition(".")
        if stem.endswith(".experts"):
            yield from _experts(f"blk.{stem.split('.')[2]}", name, weight)
            continue
        known = names.get_name(stem)
        if known is None:
            raise ConfigError(
                f"llama.cpp's {family.name} has no tensor for {name}",
                hint="export with --format hf",
            )
        yield Tensor(name, f"{known}.{end}", _as_stored(known, weight, config, family))
    if rope_of(config).get("rope_type") == "llama3":
        yield Tensor("", "rope_freqs.weight", _rope_factors(config))


def _as_stored(name: str, weight: torch.Tensor, config: Any, family: Family) -> torch.Tensor:
    if name.endswith("norm"):
        return weight + family.norm_offset
    if family.pairs_neighbours and name.endswith(("attn_q", "attn_k")):
        query = name.endswith("attn_q")
        heads = config.num_attention_heads if query else config.num_key_value_heads
        return _neighbours(weight, heads)
    if name.endswith("ffn_gate_inp_shexp"):
        return weight.squeeze(0)  # (1, hidden) -> (hidden,)
    return weight


def _neighbours(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder the rows of each head: 0, D/2, 1, D/2 + 1, …

    The weight has the shape (heads · D, …).
    """
    rows = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return rows.transpose(1, 2).reshape(weight.shape)


def _experts(block: str, name: str, weight: torch.Tensor) -> Iterator[Tensor]:
    """The tensors of stacked experts (E, rows, columns). The file stores gate and up separately."""
    if name.endswith(".down_proj"):
        yield Tensor(name, f"{block}.ffn_down_exps.weight", weight)
    else:
        gate, up = weight.chunk(2, dim=1)
        yield Tensor(name, f"{block}.ffn_gate_exps.weight", gate)
        yield Tensor(name, f"{block}.ffn_up_exps.weight", up)
