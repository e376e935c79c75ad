"""Checks of a loaded tokenizer against the files that it was loaded from."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sftctl.errors import ConfigError
from sftctl.jsonio import loads

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_MODEL = re.compile(rb'"type"\s*:\s*"(BPE|Unigram|WordPiece|WordLevel)"')
_CLASS = "tokenizer_class in tokenizer_config.json"
_PLAIN = f'set {_CLASS} to "PreTrainedTokenizerFast", which uses tokenizer.json as it is'
_CONVERT = (
    "take a tokenizer.json; `AutoTokenizer.from_pretrained(…).save_pretrained(DIR)` writes one if "
    "sentencepiece and tiktoken are installed"
)
_FEW = 5  # tokens beyond the model's embeddings that are named


def check_loaded(
    hf: "PreTrainedTokenizerFast", name: str, folder: Path, warn: Callable[[str], None]
) -> None:
    """Refuse a tokenizer that does not encode as its files say. Warn about other faults.

    Also switch off truncation, padding and dropout, so that a text always has all its tokens and no
    others. ConfigError if it is not a fast tokenizer, if it has no words, or if it is not the kind
    of tokenizer in tokenizer.json. If `folder` is not a folder, its files are not checked.
    """
    if not getattr(hf, "is_fast", False):
        raise ConfigError(
            f"tokenizer {name}: has no fast tokenizer (tokenizer.json)",
            hint="masks need character offsets, which only fast tokenizers return: choose another",
        )
    file = folder / "tokenizer.json"
    content = file.read_bytes() if file.is_file() else b""
    _require_same_model(hf, name, content)
    _require_vocabulary(hf, name, folder)
    for line in (*_switched_off(hf), *_unknown_tokens(hf, folder, content)):
        warn(f"tokenizer {name}: {line}")


def _switched_off(hf: "PreTrainedTokenizerFast") -> Iterator[str]:
    """Switch off what changes the tokens of a text. A line for each change that matters."""
    backend = hf.backend_tokenizer
    if backend.truncation is not None:
        yield (
            f"cuts each text to {backend.truncation['max_length']} tokens (truncation in "
            "tokenizer.json): not used here, max_seq_len limits an example"
        )
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()
    if dropout := getattr(backend.model, "dropout", None):
        yield (
            f"merges at random (dropout {dropout:g} in tokenizer.json): not used here, so a text "
            "always has the same tokens"
        )
        model = backend.model
        model.dropout = None
        backend.model = model


def _require_same_model(hf: "PreTrainedTokenizerFast", name: str, content: bytes) -> None:
    """ConfigError if the tokenizer's class made another kind of model than tokenizer.json has."""
    found = _MODEL.search(content)
    kind, made = found[1].decode() if found else None, type(hf.backend_tokenizer.model).__name__
    if kind not in (None, made):
        raise ConfigError(
            f"tokenizer {name}: {_CLASS} loads a {made} tokenizer ({type(hf).__name__}), but "
            f"tokenizer.json has a {kind} tokenizer",
            hint=_PLAIN,
        )


def _require_vocabulary(hf: "PreTrainedTokenizerFast", name: str, folder: Path) -> None:
    """ConfigError if the tokenizer's class has read no file of the folder, so it has no words."""
    if folder.is_dir() and len({*hf.get_vocab()} - {*hf.all_special_tokens}) < 2:
        old = _old_vocabulary(folder)
        raise ConfigError(
            f"tokenizer {name}: has no token for any text, because {type(hf).__name__} "
            f"({_CLASS}) does not read {old or 'the files in it'}",
            hint=_CONVERT,
        )


def fault_of_vocabulary(folder: Path, problem: Exception) -> tuple[str, str] | None:
    """Why a folder's tokenizer can't be loaded, and what to do. None if this is not known."""
    if old := _old_vocabulary(folder):
        return f"{old} without tokenizer.json can't be loaded", _CONVERT
    named = _object(folder / "tokenizer_config.json").get("tokenizer_class")
    if isinstance(problem, TypeError) and isinstance(named, str):
        return f"{named} ({_CLASS}) can't load tokenizer.json", _PLAIN
    return None


def _old_vocabulary(folder: Path) -> str | None:
    """The vocabulary in a form that only other libraries read, if there is no tokenizer.json."""
    if (folder / "tokenizer.json").exists():
        return None
    found = [*folder.glob("*.model"), *folder.glob("tekken.json"), *folder.glob("*.tiktoken")]
    return found[0].name if found else None


def require_embeddings(hf: "PreTrainedTokenizerFast", name: str, rows: int) -> None:
    """ConfigError if a model with this many embeddings has none for a token."""
    if len(hf) <= rows:
        return
    what, hint = "", f"prepare the data with the model's own tokenizer, without ids from {rows} on"
    if len(hf) - rows < _FEW:
        tokens = hf.convert_ids_to_tokens([*range(rows, len(hf))])
        what = f", none for {', '.join(map(str, tokens))}"
        hint = "correct the tokens in tokenizer_config.json and tokenizer.json, or " + hint
    raise ConfigError(
        f"tokenizer {name} has {len(hf)} ids, the model has embeddings for {rows}{what}", hint
    )


def _unknown_tokens(hf: "PreTrainedTokenizerFast", folder: Path, content: bytes) -> Iterator[str]:
    """A line for each special token that is in none of the files, so that it is new to the model.

    A file can write a letter of a token as it is, or as an escape.
    """
    if not content:
        return
    added = _object(folder / "tokenizer_config.json").get("added_tokens_decoder")
    known: set[object] = {*_object(folder / "added_tokens.json")}
    if isinstance(added, dict):
        known |= {one.get("content") for one in added.values() if isinstance(one, dict)}
    for key, token in hf.special_tokens_map.items():
        index = hf.convert_tokens_to_ids(token) if isinstance(token, str) else None
        if not isinstance(index, int) or index < hf.vocab_size or token in known:
            continue
        forms = (json.dumps(token, ensure_ascii=False), json.dumps(token))
        if not any(form.encode() in content for form in forms):
            yield (
                f"its {key} {token} is not in tokenizer.json: it gets the new id {index}, on which "
                f"the model was not trained; correct {key} in tokenizer_config.json"
            )


def _object(file: Path) -> dict[str, object]:
    try:
        found = loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
