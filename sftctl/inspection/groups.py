"""Which component of a model a parameter belongs to, by the words in its name."""

import re

_WORDS = {
    "lora": r"lora",
    "embedding": r"embed|tok_emb|token_embd|wte|wpe",
    "experts": r"expert|router|_exps|gate_inp",
    "norm": r"norm|\bln_|ln_f",
    "attention": r"attn|attention|[qkvo]_proj\b",
    "mlp": r"mlp|ffn|feed_forward|(gate|up|down)_proj\b",
    "head": r"lm_head|\boutput\.weight|^output|score\.weight",
}


def component_of(name: str) -> str:
    """embedding, experts, norm, attention, mlp, head, lora or other."""
    found = (group for group, words in _WORDS.items() if re.search(words, name))
    return next(found, "other")
