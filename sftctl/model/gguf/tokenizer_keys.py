"""Check that transformers can build a tokenizer from the keys of a .gguf file. Loads no library."""

from collections.abc import Mapping
from typing import Any

from sftctl.words import printable

MERGES = "tokenizer.ggml.merges"
_KINDS = ("gpt2", "llama", "t5", "gemma4")


def tokenizer_fault(values: Mapping[str, Any]) -> str | None:
    """Why no tokenizer can be built from these keys. None: no error was found.

    `values` may have only the first items of a list, or only its length. Nothing else of it is
    checked.
    """
    if "tokenizer.ggml.tokens" not in values:
        return "no tokenizer in it"
    kind = values.get("tokenizer.ggml.model")
    if kind not in _KINDS:
        named = printable(repr(kind)) if kind is not None else "not named"
        return f"its tokenizer can't be read: its kind is {named}, not {', '.join(_KINDS)}"
    merges = values.get(MERGES)
    for number, merge in enumerate(merges if isinstance(merges, list) else []):
        if not isinstance(merge, str) or merge.count(" ") != 1:
            shown = printable(repr(merge))
            return f"its tokenizer can't be read: merge {number} is {shown}, not two tokens"
    return None
