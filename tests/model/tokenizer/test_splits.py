"""A tokenizer's split has llama.cpp's name, or the tokenizer is refused."""

from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from sftctl.errors import ConfigError
from sftctl.jsonio import loads
from sftctl.model.tokenizer.splits import SPLITS, name_of_split

Step = dict[str, Any]
WORDS: Step = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
BYTES: Step = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
DIGITS: Step = {"type": "Digits", "individual_digits": True}


def split(pattern: str, behavior: str = "Isolated") -> Step:
    return {
        "type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False,
    }  # fmt: skip


def content(
    *steps: Step,
    normalizer: Step | None = None,
    ignores_merges: bool = False,
    shadowed: bool = False,
) -> dict[str, Any]:
    """What tokenizer.json holds. `shadowed`: its merges never make the token abc."""
    merges = [("a", "b"), ("ab", "c"), ("b", "c")]
    vocab = {token: index for index, token in enumerate(["a", "b", "c", "ab", "bc", "abc"])}
    model = models.BPE(vocab=vocab, merges=merges[::-1] if shadowed else merges)
    model.ignore_merges = ignores_merges
    part = steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": list(steps)}
    own: dict[str, Any] = loads(Tokenizer(model).to_str())
    return own | {"normalizer": normalizer, "pre_tokenizer": part if steps else None}


PATTERN = SPLITS["qwen2"].patterns[0]


@pytest.mark.parametrize("name", GGUF_PRE_TOKENIZER_SPLITS)
def test_the_patterns_are_those_that_transformers_reads(name: str) -> None:
    assert SPLITS[name].patterns == (GGUF_PRE_TOKENIZER_SPLITS[name],)


@pytest.mark.parametrize("name", SPLITS)
def test_the_tokenizer_of_a_file_with_a_name_gets_a_name_with_the_same_split(name: str) -> None:
    steps = [split(pattern) for pattern in SPLITS[name].patterns]
    found = name_of_split(content(*steps, BYTES, ignores_merges=SPLITS[name].ignores_merges))
    assert SPLITS[found] == SPLITS[name]


def test_splits_without_a_pattern_have_names_too() -> None:
    assert name_of_split(content(WORDS)) == "gpt-2"
    assert name_of_split(content(DIGITS, WORDS)) == "smollm"
    assert name_of_split(content(WORDS, normalizer={"type": "NFC"})) == "gpt-2"


def test_a_name_that_ignores_merges_is_not_given_to_a_tokenizer_that_needs_them() -> None:
    llama3 = split(SPLITS["llama-bpe"].patterns[0])
    assert name_of_split(content(llama3, BYTES, ignores_merges=True)) == "llama-bpe"
    assert name_of_split(content(llama3, BYTES)) == "dbrx"
    for name, ignores in (("tekken", False), ("qwen2", True)):
        other = split(SPLITS[name].patterns[0])
        assert name_of_split(content(other, BYTES, ignores_merges=ignores)) == name
        with pytest.raises(ConfigError, match=f"the tokenizer .*, and llama.cpp's {name} does not"):
            name_of_split(content(other, BYTES, ignores_merges=ignores, shadowed=True))


@pytest.mark.parametrize(
    "unknown",
    [
        content(),
        content(BYTES),
        content({"type": "Whitespace"}),
        content(WORDS | {"add_prefix_space": True}),
        content(DIGITS | {"individual_digits": False}, WORDS),
        content(split(PATTERN) | {"pattern": {"String": " "}}, BYTES),
        content(split(PATTERN), WORDS),
        content(split(PATTERN, "Removed"), BYTES),
        content(split(r"\\s+"), BYTES),
        content(split(PATTERN), split(PATTERN), BYTES),
    ],
)
def test_a_split_without_a_name_is_refused(unknown: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="no name for how the tokenizer splits a text"):
        name_of_split(unknown)


def test_a_normalizer_that_llama_cpp_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not know the tokenizer's normalizer Lowercase"):
        name_of_split(content(WORDS, normalizer={"type": "Lowercase"}))
