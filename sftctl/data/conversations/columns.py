"""The columns of a row: which are mapped to ours, and which mean that the row is not for SFT."""

from collections.abc import Iterator
from typing import Any

from sftctl.data.conversations.contents import MEDIA, require_no_media
from sftctl.data.ledger import BadRow

Row = dict[str, Any]

Columns = tuple[tuple[str, str], ...]
"""(our key, the data's column) of each mapped column."""

PREFERENCE = (
    *("chosen", "rejected", "rejected_response", "rejected_messages"),
    *("preferred_output", "non_preferred_output"),
)
LABELS = ("label", "kto_tag")
_NOT_ALL_ROWS = frozenset({"system", "tools", "functions", "history", "input", "context"})
_LOOKED_AT = frozenset({*MEDIA, *PREFERENCE, *LABELS})


def mapped(row: Row, columns: Columns) -> tuple[Row, Row]:
    """The row with its mapped columns under our keys, and the mapped columns alone."""
    ours: Row = {}
    rest = dict(row)
    for key, column in columns:
        found, value = _found(row, column)
        if not found and key not in _NOT_ALL_ROWS:
            raise BadRow(
                "bad_shape",
                f"the row has no column {column!r} (--columns {key}={column})",
                f"the row's columns: {_names(row)}",
            )
        rest.pop(column, None)
        if value is not None:
            ours[key] = value
    return rest | ours, ours


def refuse_other_data(row: Row, columns: Columns = ()) -> None:
    """BadRow for a row with media, or of preference data, where it is not known which answer is
    right.

    Preference data is accepted if one of its columns is mapped.
    """
    if _LOOKED_AT.isdisjoint(row):
        return
    require_no_media(row, "the column")
    if any(column in PREFERENCE for _, column in columns):
        return
    if found := [key for key in PREFERENCE if row.get(key)]:
        raise BadRow(
            "preference",
            f"preference data, with {' and '.join(found[:2])}: no single answer to train on",
            _how_to_train_on(row, found[0]),
        )
    for key in LABELS:
        if row.get(key) is False or str(row.get(key)).lower() == "false":
            raise BadRow(
                "preference",
                f"preference data: its {key} is false, so the answer is not wanted",
                "remove such rows",
            )


def _how_to_train_on(row: Row, key: str) -> str:
    if isinstance(row[key], list):
        return f"--columns messages={key} trains on these answers"
    if isinstance(row[key], str):
        return f"--columns completion={key} trains on these answers"
    return "add the answer that is wanted to the conversation, and remove the other"


def _found(row: Row, column: str) -> tuple[bool, Any]:
    """Whether the row has the column, and its value; `a.b` is the key b in the object a."""
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
