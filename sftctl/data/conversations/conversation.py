"""A Conversation, and how the JSON text of a row becomes one."""

import hashlib
from dataclasses import dataclass
from typing import Any

from sftctl import jsonio
from sftctl.config.schema import Format
from sftctl.data.conversations.shapes import SHAPES, Message, ParsedRow, detect_shape, known_shapes
from sftctl.data.ledger import BadRow, SourceLine


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages as OpenAI writes them: role, content (text), reasoning_content?, tool_calls?."""

    messages: tuple[Message, ...]
    tools: list[Any] | None
    source: SourceLine
    untrained: frozenset[int] = frozenset()  # messages that are only context, never a target
    shape: Format = "messages"  # the shape of the row
    digest: int = 0  # 64-bit hash of messages and tools: duplicates have the same in any shape

    @property
    def target_turns(self) -> list[int]:
        """The assistant messages to train on, in order."""
        roles = (message["role"] for message in self.messages)
        turns = (index for index, role in enumerate(roles) if role == "assistant")
        return [turn for turn in turns if turn not in self.untrained]


def from_text(text: bytes, format: Format, source: SourceLine) -> Conversation:
    """The conversation in the JSON text of a row. Raises BadRow with file and line."""
    try:
        row = jsonio.loads(text)
    except jsonio.JSONDecodeError as problem:
        raise _not_json(text, source, problem) from problem
    if not isinstance(row, dict):
        found = type(row).__name__
        raise BadRow("bad_shape", f"{source}: a row must be a JSON object, this is a {found}")
    return from_row(row, format, source)


def from_row(row: dict[str, Any], format: Format, source: SourceLine) -> Conversation:
    """The conversation in a row. Raises BadRow with file and line."""
    try:
        shape = detect_shape(row) if format == "auto" else format
        if shape is None:
            raise _unknown_shape(row)
        parsed = SHAPES[shape].parse(row)
        if not parsed.messages:
            raise BadRow("empty", "empty conversation", "remove the row")
        digest = _digest(parsed)
    except BadRow as problem:
        raise BadRow(problem.reason, f"{source}: {problem.message}", problem.hint) from None
    untrained = frozenset(parsed.untrained)
    return Conversation(tuple(parsed.messages), parsed.tools, source, untrained, shape, digest)


def _unknown_shape(row: dict[str, Any]) -> BadRow:
    keys = ", ".join(f"{key:.40}" for key in sorted(row)[:10]) or "none"
    return BadRow(
        "bad_shape",
        f"unknown row shape, with keys: {keys}; a row needs {known_shapes()}",
        "rename the keys, or name the shape with --format",
    )


def _digest(parsed: ParsedRow) -> int:
    try:
        content = jsonio.dump_canonical([parsed.messages, parsed.tools])
    except TypeError:  # the only reason why parsed JSON can't be written again
        raise BadRow("bad_shape", "tools or tool calls are nested too deeply") from None
    return int.from_bytes(hashlib.sha256(content).digest()[:8])


def _not_json(text: bytes, source: SourceLine, problem: jsonio.JSONDecodeError) -> BadRow:
    try:
        text.decode()
    except UnicodeDecodeError as invalid:
        line = source.line + text.count(b"\n", 0, invalid.start)
        return BadRow("invalid_utf8", f"{source.file}:{line}: invalid UTF-8")
    where = f"{source.file}:{source.line + problem.lineno - 1}"
    return BadRow("broken_json", f"{where}: broken JSON at column {problem.colno}: {problem.msg}")
