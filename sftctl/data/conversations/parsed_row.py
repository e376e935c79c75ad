"""The result of reading a row, and readers for columns that several row shapes share."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from sftctl.data.conversations.contents import text_of
from sftctl.data.conversations.marks import TurnWeights, moved
from sftctl.data.conversations.message_list import Message, parsed_turns, plain
from sftctl.data.conversations.reasoning import REASONING, field_reasoning, one_reasoning
from sftctl.data.conversations.tool_calls import tool_list, wrapped
from sftctl.data.ledger import BadRow

Row = dict[str, Any]

TOOLS = ("tools", "functions")
SYSTEM = (
    *("system", "system_prompt", "systemInstruction", "system_instruction", "system_message"),
    *("sys_prompt", "preamble", "instructions"),
)
"""Columns with the system prompt. Their names can also have upper case, spaces or hyphens."""
_SYSTEM_NAMES = frozenset(re.sub("[ _-]", "", name.lower()) for name in SYSTEM)
_MAYBE_SYSTEM = frozenset({"preamble", "instructions"})  # only if they are text
MORE = ("input", "context")
"""Columns with a text that is added to the question."""
QUESTION = ("instruction", "query", "question")
DOCUMENTS = ("passage", "document", "article", "paragraph")
"""Columns with a text that the question may be about. They are only read with --columns."""
_SETTINGS = frozenset(
    {
        *("on", "off", "true", "false", "yes", "no", "none", "null", "auto", "enabled", "disabled"),
        *("low", "medium", "high", "minimal", "think", "no_think", "/think", "/no_think"),
    }
)
"""Texts in a reasoning column that say whether a model reasons."""
_LONG = 40  # characters; a shorter text may be in another by chance
_WORDS = 4  # fewer words may be the name of a document
_ONE_MESSAGE = "write the turn as one message: its reasoning, its text, then all of its calls"
_ANY_TOOLS, _ANY_REASONING = frozenset(TOOLS), frozenset(REASONING)


@dataclass(slots=True)
class ParsedRow:
    """What was read from a row: messages in OpenAI's form, tools, weights, and the keys read."""

    messages: list[Message] = field(default_factory=list)
    tools: list[Any] | None = None
    untrained: set[int] = field(default_factory=set)  # numbers of messages that are only context
    weights: dict[int, TurnWeights] = field(default_factory=dict)
    """By message number. A message without an entry has weight 1."""
    used: list[str] = field(default_factory=list)
    left: set[str] = field(default_factory=set)  # unread keys of the messages


def one_of(row: Row, keys: tuple[str, ...], parsed: ParsedRow) -> str:
    """Choose one of `keys` in a row. The chosen key is returned and added to `parsed.used`.

    The first key is sftctl's own name for the column. It is chosen if it has a value. Otherwise the
    other key with a value is chosen. If no key has a value, a key with an empty text is chosen.
    Raises BadRow if the row has none of the keys. Also raises BadRow if two other keys have values.
    """
    if row.get(keys[0]):
        parsed.used.append(keys[0])
        return keys[0]
    filled = [key for key in keys if row.get(key)] or _first_empty(row, keys)
    if not filled:
        raise BadRow("bad_shape", f"{keys[0]!r} is missing")
    if len(filled) > 1 and filled[0] != keys[0]:
        raise BadRow(
            "bad_shape",
            f"both {filled[0]!r} and {filled[1]!r} are filled",
            f"say which to use: --columns {keys[0]}={filled[0]}",
        )
    parsed.used.append(filled[0])
    return filled[0]


def _first_empty(row: Row, keys: tuple[str, ...]) -> list[str]:
    """A list with the first key whose text is empty, or else with the first key in the row.

    The list is empty if the row has none of the keys.
    """
    present = [key for key in keys if key in row]
    return ([key for key in present if row[key] == ""] or present)[:1]


def add_tools(parsed: ParsedRow, row: Row, turns: Iterable[Row] = ()) -> None:
    """Read the tools of a row, or of its messages. Raises BadRow if two lists of tools differ."""
    found = list[tuple[str, list[Any]]]()
    for fields in (row, *(turn for turn in turns if len(turn) > 2)):
        for key in () if _ANY_TOOLS.isdisjoint(fields) else TOOLS:
            if fields.get(key) and (tools := tool_list(fields[key], key)) is not None:
                found.append((key, tools))
                if fields is row:
                    parsed.used.append(key)
    for key, tools in found:
        if [*map(wrapped, tools)] != [*map(wrapped, found[0][1])]:
            raise BadRow(
                "bad_shape",
                f"the row has two lists of tools that differ, {found[0][0]!r} and {key!r}",
                "join them in one list",
            )
    parsed.tools = found[0][1] if found else None


@lru_cache(1024)
def system_columns(names: tuple[str, ...]) -> tuple[str, ...]:
    """Those of `names` that are names of a system prompt. `system` comes first."""
    found = [name for name in names if re.sub("[ _-]", "", name.lower()) in _SYSTEM_NAMES]
    return tuple(sorted(found, key=lambda name: name != "system"))


def add_reasoning(parsed: ParsedRow, row: Row) -> None:
    """Use the text of a reasoning column as the reasoning of the answer, the last message.

    Raises BadRow if the answer already has another reasoning.
    """
    if _ANY_REASONING.isdisjoint(row) or parsed.messages[-1]["role"] != "assistant":
        return
    texts = {key: row[key] for key in REASONING if isinstance(row.get(key), str)}
    texts = {k: t for k, t in texts.items() if t.strip() and t.strip().lower() not in _SETTINGS}
    if not texts:
        return
    answer = parsed.messages[-1]
    reasoning, text = one_reasoning(
        field_reasoning(texts), answer.get("reasoning_content"), answer["content"]
    )
    answer["content"] = text
    if reasoning is not None:
        answer["reasoning_content"] = reasoning
    parsed.used += texts


def with_more(row: Row, prompt: str, parsed: ParsedRow) -> str:
    """The text of a prompt, with the text of the columns `input` and `context` after it.

    A text is not added if the prompt already contains it.
    """
    for key in MORE:
        if not isinstance(row.get(key), str) or not row[key].strip():
            continue
        more = row[key]
        parsed.used.append(key)
        if more.strip() != prompt.strip() and not (len(more) >= _LONG and more.strip() in prompt):
            prompt = f"{prompt}\n{more}" if prompt else more
    return prompt


def refuse_other_question(parsed: ParsedRow, row: Row) -> None:
    """Raise BadRow if the row has a second question, or a text that the question is about, in a
    column that is not read."""
    asked = "\n".join(m["content"] for m in parsed.messages if m["role"] != "assistant")
    question = row[parsed.used[0]]
    for key in (*QUESTION, "prompt", *MORE, *DOCUMENTS):
        text = row.get(key)
        if key in parsed.used or not isinstance(text, str) or text.strip() in asked:
            continue
        if isinstance(question, str) and question.strip() in text:  # a rendering of the question
            continue
        if key in DOCUMENTS and len(text.split()) < _WORDS:
            continue
        free = next((one for one in MORE if not row.get(one)), None)
        can_add = free and isinstance(question, str)
        adds = f"--columns {free}={key} adds it to the question; " if can_add else ""
        raise BadRow(
            "bad_shape",
            f"the column {key!r} has text that the question {parsed.used[0]!r} does not contain",
            f"{adds}--columns {parsed.used[0]}={parsed.used[0]} leaves it out",
        )


def add_system(parsed: ParsedRow, row: Row, *, is_context: bool = False) -> None:
    """Insert the system column as the first message. `is_context`: do not train this message.

    Raises BadRow if the messages already have a different system prompt.
    """
    found = [
        key
        for key in system_columns(tuple(row))
        if row[key] and (isinstance(row[key], str) or key.lower() not in _MAYBE_SYSTEM)
    ]
    if not found:
        return
    key = found[0]
    for other in found:
        if row[other] != row[key]:
            raise BadRow(
                "bad_shape",
                f"{key!r} and {other!r} are different system prompts",
                "remove one of them",
            )
    parsed.used += found
    value = row[key]
    text = text_of(value, "parts") if isinstance(value, dict) and "parts" in value else None
    message = plain("system", text_of(row, key) if text is None else text)
    own = [other for other in parsed.messages if other["role"] == "system"]
    if own and own[0]["content"] != message["content"]:
        raise BadRow(
            "bad_shape",
            f"the column {key!r} and the system message have different texts",
            "remove one of them",
        )
    if not own:
        parsed.messages.insert(0, message)
        parsed.untrained = {index + 1 for index in parsed.untrained}
        parsed.weights = {index + 1: weights for index, weights in parsed.weights.items()}
        if is_context:
            parsed.untrained.add(0)


def pairs(history: object, parsed: ParsedRow) -> list[list[str]]:
    """The [instruction, answer] pairs in `history` of an Alpaca row. BadRow for another form."""
    if isinstance(history, str):
        history = parsed_turns(history, "history")
    found: list[Any] = history if isinstance(history, list) else [history] if history else []
    for pair in found:
        if not (isinstance(pair, list) and [type(text) for text in pair] == [str, str]):
            raise BadRow("bad_shape", "'history' is not a list of [instruction, answer] pairs")
    if found:
        parsed.used.append("history")
    return found


def join_calls(parsed: ParsedRow) -> None:
    """Join a message with tool calls to the assistant message directly before it.

    Both are one turn at inference. If they stayed two messages, the model would learn to stop after
    the first, and the second would follow a prompt that no server sends. ms-swift writes each call
    as a message. Raises BadRow if the marks of the two messages differ, or if `_joined` does.
    """
    kept, messages = list[int](), list[Message]()
    for number, message in enumerate(parsed.messages):
        is_call = message["role"] == "assistant" and "tool_calls" in message
        if is_call and messages and messages[-1]["role"] == "assistant":
            where = f"messages {number} and {number + 1} are one assistant turn, but "
            if any((number - 1 in m) != (number in m) for m in (parsed.untrained, parsed.weights)):
                raise BadRow("bad_shape", f"{where}only one of them has a mark", _ONE_MESSAGE)
            if parsed.weights.get(number - 1) != parsed.weights.get(number):
                raise BadRow("bad_shape", f"{where}their weights differ", _ONE_MESSAGE)
            messages[-1] = _joined(messages[-1], message, where)
        else:
            kept.append(number)
            messages.append(message)
    if len(kept) < len(parsed.messages):
        parsed.messages = messages
        parsed.untrained = {new for new, old in enumerate(kept) if old in parsed.untrained}
        parsed.weights = moved(parsed.weights, kept)


def _joined(first: Message, second: Message, where: str) -> Message:
    """One message: reasoning, text, calls. BadRow if the parts of both do not fit this order."""
    text, reasoning = first["content"].strip(), first.get("reasoning_content")
    if second["content"].strip() and (text or "tool_calls" in first):
        raise BadRow("bad_shape", f"{where}the second has a text", _ONE_MESSAGE)
    if second.get("reasoning_content") and (text or reasoning or "tool_calls" in first):
        raise BadRow("bad_shape", f"{where}the second has reasoning", _ONE_MESSAGE)
    message = first | second | {"content": first["content"] if text else second["content"]}
    message["tool_calls"] = [*first.get("tool_calls", ()), *second["tool_calls"]]
    return message if reasoning is None else message | {"reasoning_content": reasoning}
