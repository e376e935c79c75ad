"""Map columns of a row to sftctl's keys, and refuse rows that are unfit for SFT."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

from sftctl import jsonio
from sftctl.data.conversations.contents import is_filled, media_keys, require_no_media
from sftctl.data.conversations.reasoning import REASONING
from sftctl.data.conversations.roles import Role, role_of
from sftctl.data.ledger import BadRow

Row = dict[str, Any]

Columns = tuple[tuple[str, str], ...]
"""One pair (sftctl's key, column of the data) for each mapped column."""

OPTIONS = "chat_template_kwargs"
"""TRL's column with options of the chat template for its row."""
LABELS = ("label", "kto_tag", "desirable", "is_desirable")
_UNWANTED = frozenset({"false", "undesirable", "rejected"})
_WANTED_WORDS = frozenset({"chosen", "preferred", "accepted"})
_PREFERENCE_WORDS = frozenset({"chosen", "rejected", "reject", "preferred", "dispreferred"})
_ANSWER_WORDS = frozenset(
    {
        *("response", "responses", "answer", "answers", "output", "outputs", "completion", "text"),
        *("message", "messages", "conversation", "conversations", "turn", "turns", "non"),
    }
)
_TARGETS = ("completion", "output", "response", "answer", "messages", "conversations", "text")
_DESCRIBES = frozenset(
    {"model", "score", "rating", "name", "id", "tokens", "length", "winner", "judge", "rank"}
)
_QUESTIONS_READ = ("prompt", "instruction", "query", "question")
_QUESTIONS = ("messages", "conversations", "conversation", "input", "inputs", "context", "problem")
_WORDS = re.compile("[a-z]+")
_ONE_OF_TWO = re.compile(r"(.*[a-z])(?:[_-][abjk]|[_-]?\d)")
_NOT_ALL_ROWS = frozenset(
    {"system", "tools", "functions", "history", "input", "context", *REASONING}
)
_LABELS = frozenset(LABELS)


def mapped(row: Row, columns: Columns) -> tuple[Row, Row]:
    """Rename the mapped columns of a row to sftctl's keys.

    Returns the complete row, and a row of only the mapped columns. Raises BadRow if a required
    column is missing or null.
    """
    ours: Row = {}
    rest = dict(row)
    for key, column in columns:
        found, value = _found(row, column)
        if not found and key not in _NOT_ALL_ROWS:
            raise BadRow(
                "bad_shape",
                f"the column {column!r} is missing or null (--columns {key}={column})",
                f"the row's columns: {_names(row)}",
            )
        rest.pop(column, None)
        if value is not None:
            ours[key] = value
    return rest | ours, ours


def columns_left(row: Row, used: Sequence[str]) -> list[str]:
    """The columns of a row that have a value, but were not read.

    Of an object in which a column such as `body.messages` was read, the other keys are named.
    """
    left = [key for key, value in row.items() if key not in used and _has_value(value)]
    for column in used:
        key, found, _ = column.partition(".")
        if found and key in left:
            left.remove(key)
            inner = [one.removeprefix(f"{key}.") for one in used if one.startswith(f"{key}.")]
            left += [f"{key}.{other}" for other in columns_left(row[key], inner)]
    return left


def row_options(row: Row) -> dict[str, Any]:
    """The options of the chat template in a row, without empty ones.

    Raises BadRow if the column is not an object.
    """
    value = row.get(OPTIONS)
    if isinstance(value, str) and value.strip():
        with suppress(jsonio.JSONDecodeError):
            value = jsonio.loads(value)
    if not value:
        return {}
    if not isinstance(value, dict):
        raise BadRow("bad_shape", f"{OPTIONS!r} is not an object", "remove it from the row")
    return {name: option for name, option in value.items() if _has_value(option)}


def _has_value(value: object) -> bool:
    """Whether a value says anything. False and 0 do; a list of nulls does not."""
    if isinstance(value, (dict, list)):
        return any(map(_has_value, value.values() if isinstance(value, dict) else value))
    return value not in (None, "")


def refuse_other_data(row: Row, columns: Columns = ()) -> None:
    """Raise BadRow for a row with media, and for a row of preference data.

    Preference data has no single right answer. Such a row is accepted if a mapped column says which
    answer to train on.
    """
    names = preference_columns(tuple(row))
    if not names and _LABELS.isdisjoint(row) and not media_keys(tuple(row)):
        return
    require_no_media(row, "the column")
    if any(ours in _TARGETS for ours, _ in columns):
        return
    if found := [key for key in names if isinstance(row[key], (str, list, dict)) and row[key]]:
        raise preference(found, _how_to_train_on(row, found))
    for key in LABELS:
        if row.get(key) is False or str(row.get(key)).lower() in _UNWANTED:
            raise BadRow(
                "preference",
                f"preference data: {key} is false, so the answer is not wanted",
                "remove such rows",
            )


def preference(columns: Sequence[str], hint: str) -> BadRow:
    """The error for a row that has several answers to choose from."""
    names = " and ".join(columns[:2])
    return BadRow(
        "preference", f"preference data, with {names}: no single answer to train on", hint
    )


@lru_cache(1024)
def preference_columns(names: tuple[str, ...]) -> tuple[str, ...]:
    """The columns whose names show one of several answers, such as `chosen` and `rejected`."""
    return tuple(name for name in names if _is_preference(_words(name)))


def _is_preference(words: set[str]) -> bool:
    return not words.isdisjoint(_PREFERENCE_WORDS) and words <= _PREFERENCE_WORDS | _ANSWER_WORDS


def answers_to_compare(names: Iterable[str]) -> list[str]:
    """Columns whose names differ only in a last letter or number: `response_a`, `response_b`.

    Names of answers come first. Columns such as `model_a` and `model_b` only describe the answers.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        if match := _ONE_OF_TWO.fullmatch(name.lower()):
            groups.setdefault(match[1], []).append(name)
    found = [(base, sorted(group)) for base, group in groups.items() if len(group) > 1]
    found = [(base, group) for base, group in found if _words(base).isdisjoint(_DESCRIBES)]
    found.sort(key=lambda one: _words(one[0]).isdisjoint(_ANSWER_WORDS))
    return found[0][1] if found else []


def _words(name: str) -> set[str]:
    return {*_WORDS.findall(name.lower())}


def _how_to_train_on(row: Row, keys: list[str]) -> str:
    """A hint that says how to train on one of the answers.

    The hint names the preferred answer if the name of a column shows which answer is preferred.
    """
    wanted = (key for key in (*keys, *row) if _is_wanted(key) and row[key])
    if (key := next(wanted, None)) is None:
        key = next((one for one in _TARGETS[:4] if row.get(one)), None)
    if key is None:
        return "--columns completion=ANSWER trains on the column ANSWER"
    if has_question(row[key]):
        return f"--columns messages={key} trains on these answers"
    answer = path_to(key, row[key])
    if answer and any(row.get(one) for one in _QUESTIONS_READ):
        return f"--columns completion={answer} trains on these answers"
    question = next(filter(None, (path_to(one, row.get(one)) for one in _QUESTIONS)), None)
    if answer and question:
        return f"--columns {as_exchange(row, question, answer)} trains on these answers"
    return "add the wanted answer to the conversation, and remove the other answer"


def has_question(turns: object) -> bool:
    """Whether a list of messages has one of a user."""
    return isinstance(turns, list) and any(role_in(turn) == "user" for turn in turns)


def role_in(turn: object) -> Role | None:
    """The role of a message; None if it is unknown."""
    name = (turn.get("role") or turn.get("from")) if isinstance(turn, dict) else None
    with suppress(BadRow):
        return role_of(name)
    return None


def path_to(key: str, value: object) -> str | None:
    """The name, for --columns, of the text or the messages in a column; None if there are none.

    A column can be an object: then `a.messages`, or `a.b` if `b` is its only text.
    """
    if isinstance(value, str):
        return key if value.strip() else None
    if isinstance(value, list):
        return key if value and all(map(role_in, value)) else None
    if not isinstance(value, dict):
        return None
    if any(map(role_in, [value])):  # a single message
        texts = [name for name in ("content", "value") if isinstance(value.get(name), str)]
    else:
        texts = [name for name, inner in value.items() if isinstance(inner, list) and inner]
        texts = [name for name in texts if path_to(name, value[name])] or [
            name for name, inner in value.items() if isinstance(inner, str)
        ]
    return f"{key}.{texts[0]}" if len(texts) == 1 else None


def as_exchange(row: Row, question: str, answer: str) -> str:
    """The mapping that reads two columns as one exchange, with the tools beside the question."""
    key, _, inner = question.partition(".")
    tools = f",tools={key}.tools" if inner and is_filled(row[key].get("tools")) else ""
    return f"prompt={question},completion={answer}{tools}"


def _is_wanted(name: str) -> bool:
    words = _words(name)
    return bool(_WANTED_WORDS & words) and words <= _WANTED_WORDS | _ANSWER_WORDS - {"non"}


def _found(row: Row, column: str) -> tuple[bool, Any]:
    """(True, value) if the row has the column, else (False, None).

    The column `a.b` is the key `b` in the object `a`.
    """
    if column in row:
        return True, row[column]
    value: Any = row
    for part in column.split("."):
        if not isinstance(value, dict) or part not in value:
            return False, None
        value = value[part]
    return True, value


def _names(row: Row) -> str:
    return ", ".join(_short(row)) or "none"


def _short(row: Row) -> Iterator[str]:
    yield from (f"{key:.40}" for key in sorted(row)[:10])
