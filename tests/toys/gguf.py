"""Models of every family that is written as .gguf, and a SentencePiece tokenizer."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from sftctl.errors import ConfigError
from sftctl.model.tokenizer.tokenizer import ChatTokenizer
from sftctl.trained.gguf.file import write_gguf
from sftctl.trained.open import Trained
from tests.toys.first_sample import TRAIN

SIZES: dict[str, Any] = dict(
    hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=96, vocab_size=2048, max_position_embeddings=1024,
    pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
EXPERTS: dict[str, Any] = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
GEMMA: dict[str, Any] = dict(head_dim=32, query_pre_attn_scalar=32)
SCALED = dict(
    rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=64,
)  # fmt: skip

MODELS: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SIZES, head_dim=16, attention_bias=True),
    "llama, scaled": lambda: LlamaConfig(**SIZES, head_dim=32, rope_parameters=SCALED),
    "llama, tied": lambda: LlamaConfig(**SIZES, head_dim=16, tie_word_embeddings=True),
    "mistral": lambda: MistralConfig(**SIZES, head_dim=16, sliding_window=256),
    "qwen2": lambda: Qwen2Config(**SIZES),
    "qwen3": lambda: Qwen3Config(**SIZES, head_dim=32),
    "qwen2_moe": lambda: Qwen2MoeConfig(**SIZES, **EXPERTS, shared_expert_intermediate_size=32),
    "qwen2_moe, tied": lambda: Qwen2MoeConfig(
        **SIZES, **EXPERTS, shared_expert_intermediate_size=32, tie_word_embeddings=True
    ),
    "qwen3_moe": lambda: Qwen3MoeConfig(**SIZES, **EXPERTS, head_dim=16, norm_topk_prob=True),
    "gemma2": lambda: Gemma2Config(**SIZES, **GEMMA),
    "gemma3": lambda: Gemma3TextConfig(**SIZES, **GEMMA),
    "phi3": lambda: Phi3Config(**SIZES),
}


def trained(config: PretrainedConfig, tokenizer: ChatTokenizer) -> Trained:
    """A model with random weights, also in its norms and biases."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    return Trained(model, tokenizer)


TURNS = ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>")


def sentencepiece(
    *, strips: bool = False, merges: tuple[tuple[str, str], ...] = ()
) -> ChatTokenizer:
    """A tokenizer like Llama 2's: spaces are written as ▁, unknown characters as their bytes.

    It has Phi 3's special tokens. `strips`: most of them include the spaces after them, as in Phi
    3. Without `merges`, any two tokens are joined whose join is a token, as in SentencePiece.
    """
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    lines = TRAIN.read_text().splitlines()
    backend.train_from_iterator((word for line in lines for word in line.split()), trainer)
    content = json.loads(backend.to_str())  # bytes are tokens of the vocabulary, not added ones
    content["added_tokens"] = [t for t in content["added_tokens"] if t["id"] < 3]
    vocab = content["model"]["vocab"]
    for first, second in merges:
        vocab.setdefault(first + second, len(vocab))
    content["model"]["merges"] = merges or _all_merges(vocab)
    for token in content["added_tokens"]:
        token["rstrip"] = strips and token["content"] == "</s>"
    hf = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        unk_token="<unk>", bos_token="<s>", eos_token="</s>",
    )  # fmt: skip
    kept, *stripping = TURNS
    hf.add_tokens([AddedToken(kept, special=True, normalized=False)])
    hf.add_tokens([AddedToken(t, special=True, normalized=False, rstrip=strips) for t in stripping])
    hf.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
    return ChatTokenizer(hf, "toy")


def _all_merges(vocab: dict[str, int]) -> list[tuple[str, str]]:
    """The earlier a token, the earlier it is joined, from whichever two."""
    learned = [token for token, index in vocab.items() if index >= 259]
    return [
        (token[:at], token[at:])
        for token in sorted(learned, key=lambda token: vocab[token])
        for at in range(1, len(token))
        if token[:at] in vocab and token[at:] in vocab
    ]


def refusal(config: PretrainedConfig, tokenizer: ChatTokenizer, folder: Path) -> str:
    model = trained(config, tokenizer)
    with pytest.raises(ConfigError) as error:
        write_gguf(model.model, tokenizer, folder / "x.gguf", "float32", "toy")
    return error.value.message
