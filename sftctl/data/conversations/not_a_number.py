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
    """The row in a text that is JSON except for NaN in columns that are not read. These columns are
    left out. None if the text has other faults. BadRow if NaN is in a column that is read.
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
            message = f"{source}: NaN or an infinite number in {key!r}, which JSON does not have"
            raise BadRow("broken_json", message, "write null or a number there")
    return {key: value for key, value in row.items() if key not in faulty}


def _has_nan(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_has_nan, value.values()))
    if isinstance(value, list):
        return any(map(_has_nan, value))
    return isinstance(value, float) and not math.isfinite(value)
