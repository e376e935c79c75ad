"""The way in: a row of any known shape becomes a Conversation in OpenAI's shape."""

import hashlib
from dataclasses import dataclass
from typing import Any

from sftctl import jsonio
from sftctl.config.schema import Format
from sftctl.data.conversations.shapes import Message as Message
from sftctl.data.conversations.shapes import Shaped, detect_format, shaped
from sftctl.data.ledger import BadRow, SourceLine


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages as OpenAI writes them: role, content (text), reasoning_content?, tool_calls?."""

    messages: tuple[Message, ...]
    tools: list[Any] | None
    source: SourceLine
    untrained: frozenset[int] = frozenset()  # messages that are context: never a target
    shape: Format = "messages"  # of the row it was
    digest: int = 0  # 64 bits of a hash of what is said: equal for duplicates of any shape

    @property
    def target_turns(self) -> list[int]:
        """The assistant messages to train on, in order."""
        roles = (message["role"] for message in self.messages)
        turns = (index for index, role in enumerate(roles) if role == "assistant")
        return [turn for turn in turns if turn not in self.untrained]


def from_text(text: bytes, format: Format, source: SourceLine) -> Conversation:
    """The conversation in the JSON text of a row; BadRow with file and line where there is none."""
    try:
        row = jsonio.loads(text)
    except jsonio.JSONDecodeError as problem:
        raise _unparsed(text, source, problem) from problem
    if not isinstance(row, dict):
        what = f"{source}: a row must be a JSON object, this is a {type(row).__name__}"
        raise BadRow("bad_shape", what)
    return from_row(row, format, source)


def from_row(row: dict[str, Any], format: Format, source: SourceLine) -> Conversation:
    """The conversation in `row`; BadRow with file and line where there is none."""
    try:
        shape = detect_format(row) if format == "auto" else format
        if shape is None:
            keys = ", ".join(f"{key:.40}" for key in sorted(row)[:10]) or "none"
            known = "messages, conversations, instruction and output, prompt and completion"
            what = f"no known shape; its keys are: {keys}"
            raise BadRow("bad_shape", what, f"known keys: {known}")
        found = shaped(row, shape)
        if not found.messages:
            raise BadRow("empty", "empty conversation", "remove the row")
        digest = _digest(found)
    except BadRow as problem:
        raise BadRow(problem.reason, f"{source}: {problem.message}", problem.hint) from None
    untrained = frozenset(found.untrained)
    return Conversation(tuple(found.messages), found.tools, source, untrained, shape, digest)


def _digest(found: Shaped) -> int:
    try:
        content = jsonio.dump_canonical([found.messages, found.tools])
    except TypeError:  # nothing else that was read as JSON can't be written as JSON
        raise BadRow("bad_shape", "tools are nested too deeply") from None
    return int.from_bytes(hashlib.sha256(content).digest()[:8])


def _unparsed(text: bytes, source: SourceLine, problem: jsonio.JSONDecodeError) -> BadRow:
    try:
        text.decode()
    except UnicodeDecodeError as invalid:
        line = source.line + text.count(b"\n", 0, invalid.start)
        return BadRow("invalid_utf8", f"{source.file}:{line}: invalid UTF-8")
    where = f"{source.file}:{source.line + problem.lineno - 1}"
    return BadRow("broken_json", f"{where}: broken JSON at column {problem.colno}: {problem.msg}")
