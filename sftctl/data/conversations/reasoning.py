"""The reasoning of a message: one text, without the tags that the template writes around it."""

from typing import Any

from sftctl.data.ledger import BadRow

REASONING = ("reasoning_content", "reasoning", "thinking", "thought")
"""Fields that hold the reasoning of a message."""
REASONING_BLOCKS = ("thinking_blocks", "reasoning_details")
"""Fields with the reasoning as a list of objects, which are read if no other field has it."""
_TEXT_BLOCKS = ("thinking", "reasoning.text")

TAGS = {
    "<think>": "</think>",
    "[THINK]": "[/THINK]",
    "<seed:think>": "</seed:think>",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<|channel>thought": "<channel|>",
    "<|inner_prefix|>": "<|inner_suffix|>",
}
"""The tag that opens a thinking block -> the tag that closes it."""


def field_reasoning(turn: dict[str, Any]) -> str | None:
    """The reasoning in a separate field of a message; None if there is none.

    Raises BadRow if a field is not text, or if two fields differ.
    """
    found = [key for key in REASONING if turn.get(key)]
    if not found and (blocks := next((key for key in REASONING_BLOCKS if turn.get(key)), None)):
        return _joined(turn[blocks], blocks)
    if not found:
        return next((turn[key] for key in REASONING if isinstance(turn.get(key), str)), None)
    for key in found:
        if not isinstance(turn[key], str):
            raise BadRow(
                "bad_shape", f"{key!r} is not text", f"write it as text, or remove {key!r}"
            )
        _require_equal(turn[found[0]], turn[key], repr(found[0]), repr(key))
    text: str = turn[found[0]]
    return text


def _joined(blocks: object, key: str) -> str:
    """The texts of reasoning blocks. Raises BadRow for encrypted and shortened reasoning."""
    texts = list[str]()
    for block in blocks if isinstance(blocks, list) else [blocks]:
        fields = block if isinstance(block, dict) else {}
        text = fields.get("thinking") or fields.get("text")
        if fields.get("type") not in _TEXT_BLOCKS or not isinstance(text, str):
            raise BadRow(
                "bad_shape",
                f"{key!r} has reasoning that is not text",
                "write the reasoning as text under 'reasoning_content', or remove it",
            )
        texts.append(text)
    return "".join(texts)


def one_reasoning(field: str | None, parts: str | None, content: str) -> tuple[str | None, str]:
    """The reasoning of a message, and its content without a block that repeats the reasoning.

    `field` is the reasoning in a separate field. `parts` is the reasoning in the parts of the
    content. Raises BadRow if these texts differ, or if the reasoning contains a closing tag.
    """
    if field and parts:
        _require_equal(
            without_tags(field), without_tags(parts), "the reasoning field", "the reasoning part"
        )
    reasoning = parts or field
    if not reasoning or not reasoning.strip():
        return reasoning, content
    reasoning = without_tags(reasoning)
    if closer := next((closer for closer in TAGS.values() if closer in reasoning), None):
        raise BadRow(
            "bad_shape",
            f"the reasoning contains {closer}, which ends a thinking block",
            "move the text after this tag into the content",
        )
    for opener, closer in TAGS.items():
        thought, found, answer = content.partition(closer)
        if found and thought.lstrip().startswith(opener):
            thought = thought.lstrip().removeprefix(opener)
            if thought.strip():
                _require_equal(reasoning, thought, "the reasoning", "the block in the content")
            return reasoning, answer.lstrip()
    return reasoning, content


def without_tags(reasoning: str) -> str:
    """The reasoning without an opening tag at its start and a closing tag at its end."""
    text = reasoning.strip()
    for opener, closer in TAGS.items():
        if text.startswith(opener) or text.endswith(closer):
            return text.removeprefix(opener).removesuffix(closer).strip()
    return reasoning


def _require_equal(one: str, other: str, first: str, second: str) -> None:
    if one.strip() != other.strip():
        raise BadRow(
            "bad_shape",
            f"{first} and {second} are different texts, but a message has only one reasoning",
            "remove one of them",
        )
