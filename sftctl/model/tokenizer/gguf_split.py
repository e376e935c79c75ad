"""How the tokenizer of a .gguf file splits text into words: `tokenizer.ggml.pre` names the split.

transformers knows about twenty names. For all other names it silently uses GPT-2's split. Then
digits or words may be split differently than in pretraining.
"""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from sftctl.model.tokenizer.splits import GPT_2, SPLITS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def fix_split(hf: "PreTrainedTokenizerFast", metadata: dict[str, Any]) -> str | None:
    """Make the tokenizer of a .gguf file use the split that the file names.

    For some names, llama.cpp ignores the merges if a complete word is a token. transformers does
    not know this, so it is set here. Returns a warning if the name is unknown and the vocabulary
    shows that the split matters.
    """
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    name = metadata.get("tokenizer.ggml.pre")
    if metadata.get("tokenizer.ggml.model") != "gpt2":
        return None
    if name in SPLITS and SPLITS[name].ignores_merges:
        hf.backend_tokenizer.model.ignore_merges = True
    if name in GGUF_PRE_TOKENIZER_SPLITS:
        return None
    if name in SPLITS:
        if SPLITS[name].patterns != (GPT_2,):
            set_split(hf, SPLITS[name].patterns)
        return None
    if not split_matters(hf):
        return None
    named = f"its split is named {name!r}, which is not known here" if name else "it names no split"
    return (
        f"{named}: text is cut into words as GPT-2 does, perhaps differently from "
        "pretraining; give --tokenizer with the original model's folder or name"
    )


def set_split(hf: "PreTrainedTokenizerFast", patterns: Sequence[str]) -> None:
    """Split by the first pattern, then each piece by the next pattern, and then into bytes."""
    from tokenizers import Regex, pre_tokenizers

    steps: list[Any] = [pre_tokenizers.Split(Regex(one), "isolated") for one in patterns]
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    hf.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, bytes_])


def split_matters(hf: "PreTrainedTokenizerFast") -> bool:
    """Whether the vocabulary has a token that GPT-2's split and another split may cut differently.

    A merge never crosses a boundary of the split that it was learned with. So two splits give the
    same tokens if both keep every token of the vocabulary in one word. Splits often differ for
    numbers. So a token with two digits, or with a digit after a space, is enough for True.
    """
    from tokenizers import pre_tokenizers

    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return any(
        _NUMBER.search(text) is not None or len(words.pre_tokenize_str(text)) > 1
        for text in _texts(hf)
    )


_NUMBER = re.compile(r"\d.*\d|\s\d", re.DOTALL)


def _texts(hf: "PreTrainedTokenizerFast") -> Iterable[str]:
    """The texts of the learned tokens. A token that is only a part of a character is left out."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    byte_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
    added = set(hf.get_added_vocab())
    for token in hf.get_vocab():
        if token not in added and all(letter in byte_of for letter in token):
            text = bytes(byte_of[letter] for letter in token).decode("utf-8", "replace")
            if "\ufffd" not in text:
                yield text
