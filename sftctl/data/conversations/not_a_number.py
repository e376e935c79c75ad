"""Rows with NaN or infinite numbers: JSON does not have them, but pandas writes them."""

import json
import math
import re
from typing import Any

from sftctl import jsonio
from sftctl.data.conversations.columns import Columns
from sftctl.data.conversations.shapes import ROW_KEYS
from sftctl.data.ledger import BadRow, SourceLine

_MAY_HOLD = re.compile(rb"NaN|Infinity|\d[eE]\+?\d{3}")


def row_with_nan(text: bytes, source: SourceLine, columns: Columns = ()) -> Any:
    """Parse a row that would be JSON without its NaN or infinite numbers.

    Returns the row without the columns that hold such numbers. Returns None if the text has other
    faults. Raises BadRow if such a number is in a column that sftctl reads.
    """
    if not _MAY_HOLD.search(text):
        return None
    try:
        row = json.loads(text)
        jsonio.dump_strict(row)  # refuses what JSON does not allow, such as half a surrogate pair
    except (ValueError, TypeError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    read = ROW_KEYS | {column.split(".")[0] for _, column in columns}
    faulty = [key for key, value in row.items() if _has_nan(value)]
    for key in faulty:
        if key in read:
            message = f"{source}: {key!r} has NaN or an infinite number, which JSON does not allow"
            raise BadRow("broken_json", message, "write null or a finite number instead")
    return {key: value for key, value in row.items() if key not in faulty}


def _has_nan(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_has_nan, value.values()))
    if isinstance(value, list):
        return any(map(_has_nan, value))
    return isinstance(value, float) and not math.isfinite(value)
