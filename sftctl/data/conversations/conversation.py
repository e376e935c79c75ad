"""The class Conversation, and how the JSON text of a row becomes a Conversation."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sftctl import jsonio
from sftctl.config.schema import Format
from sftctl.data.conversations.columns import (
    OPTIONS,
    Columns,
    columns_left,
    mapped,
    refuse_other_data,
    row_options,
)
from sftctl.data.conversations.marks import TurnWeights
from sftctl.data.conversations.message_list import Message
from sftctl.data.conversations.not_a_number import row_with_nan
from sftctl.data.conversations.padding import drop_padding
from sftctl.data.conversations.parsed_row import ParsedRow, join_calls, refuse_other_question
from sftctl.data.conversations.shapes import (
    ROW_KEYS,
    SHAPES,
    detect_shape,
    empty_column,
    with_turns_read,
)
from sftctl.data.conversations.tool_calls import LONG_INTEGER, refuse_tools_elsewhere, wrapped
from sftctl.data.conversations.unknown import WRAP, refuse_half_elsewhere, unknown_shape
from sftctl.data.ledger import BadRow, SourceLine

TO_UTF8 = "convert the file to UTF-8, for example with `iconv -f WINDOWS-1252 -t UTF-8`"

_HAS_TOOLS = re.compile(rb'"(?:tool|function)')


@dataclass(frozen=True, slots=True)
class Conversation:
    """A row as messages in OpenAI's form.

    A message has a role and a content (one string). `reasoning_content` and `tool_calls` are
    optional.
    """

    messages: tuple[Message, ...]
    tools: list[Any] | None
    source: SourceLine
    untrained: frozenset[int] = frozenset()  # messages that are only context and never trained
    weights: Mapping[int, TurnWeights] = field(default_factory=dict)  # only weights that are not 1
    shape: Format = "messages"  # the shape of the row
    digest: int = 0  # 64-bit hash of messages and tools; duplicates have equal hashes
    was_padded: bool = False  # True: Arrow's padding was removed from the tools or calls
    used: tuple[str, ...] = ()  # the columns of the row that were read
    options: Mapping[str, Any] = field(default_factory=dict)  # of the template, from the row
    left: tuple[str, ...] = ()  # columns with a value, and keys of messages, that were not read

    @property
    def target_turns(self) -> list[int]:
        """The assistant messages to train on, in order."""
        roles = (message["role"] for message in self.messages)
        turns = (index for index, role in enumerate(roles) if role == "assistant")
        return [turn for turn in turns if turn not in self.untrained]


def from_text(
    text: bytes,
    format: Format,
    source: SourceLine,
    columns: Columns = (),
    *,
    from_arrow: bool = False,
) -> Conversation:
    """The conversation in the JSON text of a row. Raises BadRow with file and line.

    `columns` maps columns of the row to sftctl's keys. `from_arrow`: the row comes from an Arrow
    table, so its nulls are padding.
    """
    try:
        row = jsonio.loads(text)
    except jsonio.JSONDecodeError as problem:
        row = row_with_nan(text, source, columns)
        if row is None:
            raise _not_json(text, source, problem) from problem
    if not isinstance(row, dict):
        raise _not_an_object(row, source)
    if _HAS_TOOLS.search(text):  # other rows have no numbers to train on
        _refuse_rounded(text, row, source, columns)
    has_nulls = from_arrow or b"null" in text
    return from_row(row, format, source, columns, from_arrow=from_arrow, has_nulls=has_nulls)


def from_row(
    row: dict[str, Any],
    format: Format,
    source: SourceLine,
    columns: Columns = (),
    *,
    from_arrow: bool = False,
    has_nulls: bool = True,
) -> Conversation:
    """The conversation in a parsed row. Changes `row`. Raises BadRow with file and line."""
    nulls: list[str] = []
    try:
        was_padded = has_nulls and drop_padding(row, from_arrow=from_arrow)
        if has_nulls:
            nulls = [key for key, value in row.items() if value is None]
            row = {key: value for key, value in row.items() if value is not None}
        fields, first = mapped(row, columns) if columns else (row, {})
        refuse_other_data(fields, columns)
        fields = with_turns_read(fields)
        shape = detect_shape(first) if first else None
        shape = (shape or detect_shape(fields)) if format == "auto" else format
        if shape is None and (missing := empty_column(fields, nulls)) is not None:
            raise BadRow("bad_shape", f"{missing!r} is null", "fill it, or remove the row")
        if shape is None:
            raise unknown_shape(fields, is_line=source.row is None)
        parsed = SHAPES[shape].parse(fields)
        if not parsed.messages:
            raise BadRow("empty", "empty conversation", "remove the row")
        if not any(map(_says_something, parsed.messages)):
            raise BadRow("empty", "every message is empty", "remove the row")
        refuse_half_elsewhere(fields, parsed, columns)
        if shape in ("alpaca", "prompt-completion") and not columns:
            refuse_other_question(parsed, fields)
        if any("tool_calls" in message for message in parsed.messages):
            join_calls(parsed)
            if parsed.tools is None:
                refuse_tools_elsewhere(fields)
        options = row_options(row)
        digest = _digest(parsed)
    except BadRow as problem:
        raise BadRow(problem.reason, f"{source}: {problem.message}", problem.hint) from None
    names = dict(columns)
    used = [names.get(key, key) for key in parsed.used]
    return Conversation(
        messages=tuple(parsed.messages),
        tools=None if parsed.tools is None else [wrapped(tool) for tool in parsed.tools],
        source=source,
        untrained=frozenset(parsed.untrained),
        weights=parsed.weights,
        shape=shape,
        digest=digest,
        was_padded=was_padded,
        used=tuple(used),
        left=(*columns_left(row, (*used, OPTIONS)), *sorted(parsed.left)),
        options=options,
    )


def _says_something(message: Message) -> bool:
    content: str = message["content"]
    return bool(content.strip() or message.get("tool_calls") or message.get("reasoning_content"))


def _refuse_rounded(text: bytes, row: dict[str, Any], source: SourceLine, columns: Columns) -> None:
    """Raise BadRow if the JSON reader rounded an integer in a column that sftctl reads."""
    read = ROW_KEYS | {column.split(".")[0] for _, column in columns}
    for key in jsonio.rounded(text.decode(), row):
        if key in read:
            raise BadRow("bad_shape", f"{source}: {key!r} has {LONG_INTEGER}", "write it as text")


def _not_an_object(row: object, source: SourceLine) -> BadRow:
    message = f"{source}: a row must be a JSON object, but this is a {type(row).__name__}"
    is_messages = isinstance(row, list) and row and isinstance(row[0], dict)
    return BadRow("bad_shape", message, WRAP.replace("'{", "'.[] | {") if is_messages else None)


def _digest(parsed: ParsedRow) -> int:
    try:
        content = jsonio.dump_strict([parsed.messages, parsed.tools], sort_keys=True)
    except TypeError:  # for parsed JSON, too deep nesting is the only cause of a TypeError
        raise BadRow("bad_shape", "tools or tool calls are nested too deeply") from None
    return int.from_bytes(hashlib.sha256(content).digest()[:8])


def _not_json(text: bytes, source: SourceLine, problem: jsonio.JSONDecodeError) -> BadRow:
    try:
        text.decode()
    except UnicodeDecodeError as invalid:
        where = replace(source, line=source.line + text.count(b"\n", 0, invalid.start))
        return BadRow("invalid_utf8", f"{where}: invalid UTF-8", TO_UTF8)
    where = replace(source, line=source.line + problem.lineno - 1)
    message = f"{where}: broken JSON at column {problem.colno}: {problem.msg}"
    return BadRow("broken_json", message, _hint(text, problem.msg))


def _hint(text: bytes, problem: str) -> str | None:
    """A hint for some common mistakes; None for other text."""
    if text.lstrip()[1:].lstrip().startswith(b"'"):
        return "this is Python's repr of an object, not JSON: write the file with json.dumps"
    if "after document" in problem and text.rstrip().endswith(b"},"):
        return "the row ends with a comma: `sed 's/,$//' FILE > rows.jsonl` removes such commas"
    if "after document" in problem:
        return (
            "the lines end with CR alone: `tr '\\r' '\\n'` converts the line ends"
            if b"\r" in text
            else "one JSON object per line, with nothing after it"
        )
    return None
