"""What to say about a row of no known shape: what it is, and how to read it."""

from typing import Any

from sftctl.data.conversations.shapes import SHAPES, detect_shape, known_shapes
from sftctl.data.ledger import BadRow

Row = dict[str, Any]

_QUESTIONS = ("input", "problem", "text", "user", "human", "source", "query", "question", "title")
_ANSWERS = ("output", "solution", "target", "assistant", "gpt", "bot", "reply", "chosen", "code")
_RENAME = (
    "rename the keys, map them as in --columns prompt=QUESTION,completion=ANSWER, or name the "
    "shape with --format"
)


def unknown_shape(row: Row) -> BadRow:
    """The error for a row that no shape matches."""
    hint = _hint(row)
    if hint is None and isinstance(row.get("text"), str):
        return BadRow(
            "bad_shape",
            "text to continue, not a conversation: its key is text",
            "--format text trains on every token of it",
        )
    keys = ", ".join(f"{key:.40}" for key in sorted(row)[:10]) or "none"
    return BadRow(
        "bad_shape",
        f"unknown row shape, with keys: {keys}; a row needs {known_shapes()}",
        hint or _RENAME,
    )


def _hint(row: Row) -> str | None:
    """A hint how such a row can be read; None if it is not obvious."""
    for key, value in row.items():
        if isinstance(value, dict) and (shape := detect_shape(value)):
            first = next(k for k in SHAPES[shape].reads if k in value)
            return f"--columns {first}={key}.{first} reads the conversation in {key!r}"
        if isinstance(value, list) and value and isinstance(value[0], dict):
            if "role" in value[0] or "from" in value[0]:
                return f"--columns messages={key} reads these messages"
            if detect_shape(value[0]):
                return (
                    f"the rows are in {key!r}: `jq -c '.{key}[]' FILE > rows.jsonl` takes them out"
                )
    lower = {key.lower(): key for key in row}
    if lower.keys() != row.keys() and (
        shape := detect_shape({k: row[v] for k, v in lower.items()})
    ):
        pairs = (f"{k}={v}" for k, v in lower.items() if k in SHAPES[shape].reads and k != v)
        return f"--columns {','.join(pairs)}"
    question = next((key for key in _QUESTIONS if isinstance(row.get(key), str)), None)
    answer = next((key for key in _ANSWERS if isinstance(row.get(key), str)), None)
    if question and answer:
        return f"--columns prompt={question},completion={answer} reads them as one exchange"
    return None
