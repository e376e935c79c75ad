"""What a .gguf file says about a tokenizer: tokens, merges, special tokens, split, template."""

import re
from typing import TYPE_CHECKING, Any

from sftctl.errors import ConfigError
from sftctl.jsonio import loads
from sftctl.model.generate import ends_of_turn
from sftctl.model.tokenizer.splits import name_of_split, steps_of
from sftctl.model.tokenizer.tokenizer import ChatTokenizer
from sftctl.trained.gguf.sentencepiece import PHI3_KEEPS, SPACE

if TYPE_CHECKING:
    from gguf import GGUFWriter

_HINT = "export with --format hf"


def write_vocabulary(writer: "GGUFWriter", tokenizer: ChatTokenizer, num_rows: int) -> None:
    """Write the tokenizer's keys. `num_rows` is the number of rows of the embeddings.

    ConfigError if llama.cpp does not support the tokenizer, or if it has more tokens than rows.
    """
    if tokenizer.vocab_size > num_rows:
        raise ConfigError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, and the embeddings {num_rows} rows",
            hint="llama.cpp refuses such a model: use the tokenizer it was trained with",
        )
    content = loads(tokenizer.hf.backend_tokenizer.to_str())
    model = content["model"]
    if model["type"] != "BPE":
        raise ConfigError(f"llama.cpp has no tokenizer of the type {model['type']}", hint=_HINT)
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    tokens, types = _tokens(content, num_rows)
    if model.get("byte_fallback"):
        _write_sentencepiece(writer, content, tokens, merges)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(name_of_split(content))
    writer.add_token_merges(merges)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    _write_special(writer, tokenizer)


def name_for(tokenizer: ChatTokenizer, name: str) -> str:
    """The model's name in the file.

    llama.cpp decides by this name whether special tokens take the spaces after them. ConfigError if
    they take spaces in another way than in Phi 3.
    """
    added = loads(tokenizer.hf.backend_tokenizer.to_str())["added_tokens"]
    plain = re.sub("(?i)(phi|modern)-?(3|bert)", r"\1 \2", name)
    strips = {token["content"] for token in added if token["rstrip"]}
    others = [t["content"] for t in added if t["lstrip"] or t["single_word"]]
    if not strips and not others:
        return plain
    everything = {token["content"] for token in added}
    if not others and strips | PHI3_KEEPS == everything and not strips & PHI3_KEEPS:
        return f"{plain} (phi-3)"
    first = min(strips.union(others))
    raise ConfigError(
        f"llama.cpp does not treat the spaces next to {first} as this tokenizer does", _HINT
    )


def _tokens(content: dict[str, Any], num_rows: int) -> tuple[list[str], list[int]]:
    """The text and the type of every token, by id. Ids without a token get the type UNUSED."""
    from gguf import TokenType

    model = content["model"]
    by_id = {index: token for token, index in model["vocab"].items()}
    types = dict.fromkeys(by_id, TokenType.NORMAL)
    if model.get("byte_fallback"):
        types |= {index: TokenType.BYTE for index, text in by_id.items() if _is_byte(text)}
        types |= {index: TokenType.UNKNOWN for index, text in by_id.items() if text == "<unk>"}
    for added in content["added_tokens"]:
        by_id[added["id"]] = added["content"]
        unknown = types.get(added["id"]) == TokenType.UNKNOWN
        kind = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        types[added["id"]] = TokenType.UNKNOWN if unknown else kind
    ids = range(num_rows)
    return (
        [by_id.get(index, f"[PAD{index}]") for index in ids],
        [int(types.get(index, TokenType.UNUSED)) for index in ids],
    )


def _is_byte(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


def _write_sentencepiece(
    writer: "GGUFWriter", content: dict[str, Any], tokens: list[str], merges: list[str]
) -> None:
    """Write scores in place of merges. The first merge gets the highest score, because llama.cpp
    joins the pair with the highest score first.
    """
    rank = dict[str, int]()
    for order, merge in enumerate(merges):
        rank.setdefault(merge.replace(" ", ""), order)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_scores([float(-rank.get(token, len(merges))) for token in tokens])
    writer.add_add_space_prefix(_adds_a_space(content))


def _adds_a_space(content: dict[str, Any]) -> bool:
    """Whether a space is put before the text, and before the text after each special token.

    llama.cpp supports both together, or neither. ConfigError if a space is put only before the
    first text, or if a space is not written as ▁.
    """
    steps = [step for part in ("normalizer", "pre_tokenizer") for step in steps_of(content[part])]
    replaced = [step for step in steps if step["type"] == "Replace" and step["content"] == SPACE]
    scheme = next(
        (s.get("prepend_scheme", "always") for s in steps if s["type"] == "Metaspace"), None
    )
    if not replaced and scheme is None:
        raise ConfigError(
            f"this tokenizer has byte fallback and does not write spaces as {SPACE}; llama.cpp has "
            "no such tokenizer",
            _HINT,
        )
    if scheme == "first":
        raise ConfigError(
            "the tokenizer puts a space before the first text only, and llama.cpp before each text "
            "that follows a special token",
            _HINT,
        )
    prepended = any(s["type"] == "Prepend" and s["prepend"] == SPACE for s in steps)
    return prepended or scheme == "always"


def _write_special(writer: "GGUFWriter", tokenizer: ChatTokenizer) -> None:
    hf = tokenizer.hf
    ids = {
        "bos": (hf.bos_token_id, writer.add_bos_token_id),
        "eos": (hf.eos_token_id, writer.add_eos_token_id),
        "unk": (hf.unk_token_id, writer.add_unk_token_id),
        "pad": (hf.pad_token_id, writer.add_pad_token_id),
    }
    for index, add in ids.values():
        if index is not None:
            add(index)
    for index in sorted(ends_of_turn(tokenizer))[:1]:
        writer.add_eot_token_id(index)
    alone = hf("a", add_special_tokens=True)["input_ids"]
    writer.add_add_bos_token(hf.bos_token_id is not None and alone[0] == hf.bos_token_id)
    writer.add_add_eos_token(hf.eos_token_id is not None and alone[-1] == hf.eos_token_id)
    if hf.chat_template:
        writer.add_chat_template(_named(hf.chat_template))


def _named(templates: str | dict[str, str]) -> str | list[dict[str, str]]:
    """A template, or several templates in the form that gguf expects."""
    if isinstance(templates, str):
        return templates
    return [{"name": name, "template": template} for name, template in templates.items()]
