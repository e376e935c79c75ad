"""Small models of several families as folders and .gguf files, with names and tensors changed."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from sftctl import jsonio
from sftctl.data.sample import SAMPLE_TOKENIZER

Tensors = dict[str, torch.Tensor]
_SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 256,
}  # fmt: skip
_EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "norm_topk_prob": True,
}  # fmt: skip  (llama.cpp always does)
FAMILIES = ("llama", "qwen2", "qwen3", "gemma3_text", "phi3", "qwen3_moe")


def toy_base(family: str = "llama", **sizes: Any) -> Any:
    """A model of two layers with random weights, of the same seed each time."""
    torch.manual_seed(0)
    experts = _EXPERTS if "moe" in family else {}
    config = AutoConfig.for_model(family, **{**_SIZES, **experts, **sizes})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():  # norms of ones and biases of zeros would hide that they are not loaded
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def write_base(
    folder: Path,
    model: Any,
    change: Callable[[Tensors], Mapping[str, torch.Tensor]] = lambda tensors: tensors,
    **config: Any,
) -> Path:
    """The model's folder with changed tensors in one file, and other values in config.json."""
    model.save_pretrained(folder)
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    changed = {name: tensor.contiguous() for name, tensor in change(tensors).items()}
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    if config:
        made = AutoConfig.from_pretrained(folder)
        made.update(config)
        made.save_pretrained(folder)
    return folder


def with_tokenizer(folder: Path) -> Path:
    """The folder with the sample's tokenizer in it."""
    for file in SAMPLE_TOKENIZER.iterdir():
        shutil.copy(file, folder)
    return folder


_ARCHITECTURES = {"llama": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3", "qwen3_moe": "QWEN3MOE"}


def write_gguf_model(
    file: Path,
    model: Any,
    change: Callable[[Tensors], Mapping[str, torch.Tensor]] = lambda tensors: tensors,
    tokenizer: Path | None = None,
    **keys: Any,
) -> Path:
    """A .gguf file of the model in float32, as llama.cpp's converter names its keys and tensors."""
    import gguf

    config = model.config
    arch = getattr(gguf.MODEL_ARCH, _ARCHITECTURES[config.model_type])
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[arch])
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    if config.model_type != "qwen2":
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if "moe" in config.model_type:
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    for key, value in keys.items():
        writer.add_string(key, value)
    if tokenizer is not None:
        _add_tokenizer(writer, tokenizer)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for name, tensor in change(_gguf_tensors(model)).items():
        stem, _, end = name.rpartition(".")
        known = names.get_name(stem)
        writer.add_tensor(f"{known}.{end}" if known else name, tensor.numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _add_tokenizer(writer: Any, folder: Path) -> None:
    """The vocabulary, merges, special tokens and chat template of a byte-level tokenizer."""
    content = jsonio.loads((folder / "tokenizer.json").read_bytes())
    settings = jsonio.loads((folder / "tokenizer_config.json").read_bytes())
    ids: dict[str, int] = dict(content["model"]["vocab"])
    ids |= {one["content"]: one["id"] for one in content["added_tokens"]}
    special = {one["content"] for one in content["added_tokens"]}
    tokens = sorted(ids, key=lambda token: ids[token])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in content["model"]["merges"]])
    writer.add_eos_token_id(ids[settings["eos_token"]])
    template = folder / "chat_template.jinja"
    writer.add_chat_template(
        template.read_text() if template.is_file() else settings["chat_template"]
    )


def _gguf_tensors(model: Any) -> Tensors:
    """The weights under the names that llama.cpp's map knows: one tensor for all experts."""
    result: Tensors = {}
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        part = name.split(".")[-2]
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        if name.endswith(".experts.gate_up_proj"):
            stem = name.removesuffix("gate_up_proj")
            gate, up = tensor.chunk(2, dim=1)
            result[f"{stem}gate_proj.weight"], result[f"{stem}up_proj.weight"] = gate, up
        elif name.endswith(".experts.down_proj"):
            result[f"{name}.weight"] = tensor
        elif model.config.model_type == "llama" and part in heads:  # llama.cpp pairs other halves
            pairs = tensor.view(heads[part], 2, -1, tensor.shape[1]).swapaxes(1, 2)
            result[name] = pairs.reshape(tensor.shape)
        else:
            result[name] = tensor
    return {name: tensor.detach().contiguous() for name, tensor in result.items()}
