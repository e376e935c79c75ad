"""llama.cpp's names for ways to split a text into words before it is encoded.

A .gguf file holds only the name (`tokenizer.ggml.pre`), not the rules. The table is used in both
directions: name to rules for reading a file, rules to name for writing one. Names and rules are
from llama.cpp (`llama-vocab.cpp`). The patterns are written as in the tokenizer.json files of the
models.
"""

from dataclasses import dataclass
from typing import Any

from sftctl.errors import ConfigError
from sftctl.jsonio import dump_canonical

GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The default split of byte-level tokenizers."""

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*" + _SPACES
_REST_WITH_SLASH = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _SPACES
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{_REST}"
_TEKKEN = _CASED % ("", "") + rf"|\p{{N}}{_REST_WITH_SLASH}"
_GPT4O = _CASED % (f"{_CONTRACTIONS}?", f"{_CONTRACTIONS}?") + rf"|\p{{N}}{{1,3}}{_REST_WITH_SLASH}"
_QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*{_SPACES}"
)
_DIGITS = (r"\p{N}", GPT_2)
_LATIN = r"[\p{Lu}\p{Ll}\p{Lt}&&[^\u10D0-\u10FF]]"  # llama.cpp's list lacks Georgian small letters
_CHINESE = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*" + _SPACES,
)
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_BAILING = (
    rf"'(?i:[sdmt]|ll|ve|re)|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
_SEED = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+{_SPACES}"


@dataclass(frozen=True, slots=True)
class Split:
    """How llama.cpp splits a text into words, and how it encodes a word."""

    patterns: tuple[str, ...]
    """Each pattern splits the pieces that the patterns before it have made."""
    ignores_merges: bool = False
    """True: a word that is a token becomes this token. The merges are used only for other words."""


def _named(
    *names: str, patterns: tuple[str, ...], ignores_merges: bool = False
) -> dict[str, Split]:
    return dict.fromkeys(names, Split(patterns, ignores_merges))


SPLITS: dict[str, Split] = {
    **_named("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", patterns=(GPT_2,)),
    **_named("granite-docling", "gigachat", "mellum", "a.x-4.0", "exaone4", patterns=(GPT_2,)),
    **_named("jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "modern-bert", patterns=(GPT_2,)),
    **_named("jina-v1-en", "jina-v2-code", "roberta-bpe", patterns=(GPT_2,)),
    **_named("smollm", "starcoder", "refact", "command-r", "codeshell", patterns=_DIGITS),
    **_named("exaone", "minerva-7b", "mellum2", patterns=_DIGITS),
    **_named("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", patterns=(_QWEN2,)),
    **_named("stablelm2", "hunyuan", "solar-open", "grok-2", patterns=(_QWEN2,)),
    **_named("qwen35", patterns=(_QWEN35,)),
    **_named("llama-bpe", "llama3", "llama-v3", patterns=(_LLAMA3,), ignores_merges=True),
    **_named("falcon3", "falcon-h1", "pixtral", patterns=(_LLAMA3,), ignores_merges=True),
    **_named("midm-2.0", "lfm2", "jina-v5-nano", patterns=(_LLAMA3,), ignores_merges=True),
    **_named("glm4", patterns=(_LLAMA3,), ignores_merges=True),
    **_named("dbrx", "smaug-bpe", "chatglm-bpe", patterns=(_LLAMA3,)),
    **_named("tekken", patterns=(_TEKKEN,), ignores_merges=True),
    **_named("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2", patterns=(_GPT4O,)),
    **_named("deepseek-v3", "hunyuan-dense", "joyai-llm", patterns=_DEEPSEEK3),
    **_named("bloom", "poro-chat", "gpt3-finnish", patterns=(_BLOOM,)),
    **_named("bailingmoe", "bailingmoe2", "llada-moe", patterns=(_BAILING,)),
    **_named("seed-coder", patterns=(_SEED,)),
    **_named("viking", patterns=(_BLOOM, r"\p{N}")),
    **_named("falcon", patterns=(r"[\p{P}\$\+<=>\^~\|`]+", GPT_2, r"[0-9][0-9][0-9]")),
    **_named("default", patterns=(r"[\p{P}\$\+<=>\^~\|]+", GPT_2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    **_named(
        "deepseek-coder", patterns=(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CHINESE, r"\p{N}")
    ),
    **_named(
        "deepseek-llm",
        patterns=(
            r"[\r\n]",
            rf"\s?{_LATIN}+",
            "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
            r"\s+$",
            _CHINESE,
            r"\p{N}+",
        ),
    ),
}
"""Name -> split. If several names have the same split, an export writes the first of them."""

CUT_AT_BREAKS = (
    *("gpt-2", "smollm", "qwen2", "qwen35", "llama-bpe", "tekken", "gpt-4o", "deepseek-v3"),
    *("bailingmoe", "seed-coder"),
)
"""Splits that always cut between an ASCII letter and a break (`token_bytes` defines it).

`token_bytes` proves this from three facts. No pattern matches a string in which a break follows an
ASCII letter. The only look-around is `(?!\\S)` after white space. The last pattern matches every
letter.
"""


def is_cut_at_breaks(content: dict[str, Any]) -> bool:
    """Whether a tokenizer has one of these splits. `content` is the content of tokenizer.json."""
    patterns = _patterns(steps_of(content["pre_tokenizer"]))
    is_random = content["model"].get("dropout")
    return not is_random and patterns in [SPLITS[name].patterns for name in CUT_AT_BREAKS]


def name_of_split(content: dict[str, Any]) -> str:
    """The name of a byte-level tokenizer's split. `content` is the content of tokenizer.json.

    ConfigError if llama.cpp has no name for this split. With another name, llama.cpp would cut
    words or digits differently.
    """
    normalizer = (content["normalizer"] or {}).get("type")
    if normalizer not in (None, "NFC"):
        raise ConfigError(
            f"llama.cpp does not know the tokenizer's normalizer {normalizer}",
            hint="export with --format hf",
        )
    steps = steps_of(content["pre_tokenizer"])
    patterns = _patterns(steps)
    found = {name: split for name, split in SPLITS.items() if split.patterns == patterns}
    if not found:
        kinds = ", ".join(step["type"] for step in steps) or "none"
        known = {split: name for name, split in reversed(SPLITS.items())}
        raise ConfigError(
            f"llama.cpp has no name for how the tokenizer splits a text ({kinds})",
            hint=f"known are {', '.join(reversed(known.values()))}; or export with --format hf",
        )
    ignores = bool(content["model"].get("ignore_merges"))
    for name, split in found.items():
        if split.ignores_merges == ignores:
            return name
    if _merges_make_every_token(content):
        return next(iter(found))
    does = "takes words that are tokens whole" if ignores else "builds every word by its merges"
    raise ConfigError(
        f"the tokenizer {does}, and llama.cpp's {next(iter(found))} does not",
        hint="export with --format hf",
    )


def _patterns(steps: list[dict[str, Any]]) -> tuple[str, ...] | None:
    """The steps as patterns, as in SPLITS; None if a step can't be written as a pattern."""
    if not steps or steps[-1]["type"] != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    patterns = [_pattern(step) for step in steps[:-1]]
    if steps[-1].get("use_regex", True):
        patterns.append(GPT_2)
    return None if None in patterns else tuple(one for one in patterns if one is not None)


def _pattern(step: dict[str, Any]) -> str | None:
    if step["type"] == "Digits":
        return r"\p{N}" if step.get("individual_digits") else r"\p{N}+"
    if step["type"] != "Split" or step["behavior"] != "Isolated" or step["invert"]:
        return None
    pattern: str | None = step["pattern"].get("Regex")
    return pattern


def _merges_make_every_token(content: dict[str, Any]) -> bool:
    """Whether the merges join the letters of each token to this token.

    Then it makes no difference whether merges are ignored.
    """
    from tokenizers import Tokenizer

    model = content["model"] | {"ignore_merges": False}
    alone = content | {"model": model, "normalizer": None, "pre_tokenizer": None}
    by_merges = Tokenizer.from_str(dump_canonical(alone).decode()).model
    added = {token["content"] for token in content["added_tokens"]}
    learned = (token for token in content["model"]["vocab"] if token not in added)
    return all(len(by_merges.tokenize(token)) == 1 for token in learned)


def steps_of(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer of tokenizer.json, in order."""
    if part is None:
        return []
    inner = part.get("normalizers") or part.get("pretokenizers")
    return [part] if inner is None else [step for one in inner for step in steps_of(one)]
