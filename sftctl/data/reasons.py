"""Why a row is not kept as it came: a closed list, documented in docs/data.md."""

from typing import Literal

from sftctl.errors import DataError

Reason = Literal[
    "broken_json",
    "invalid_utf8",
    "cut_off",
    "oversized",
    "bad_shape",
    "bad_role",
    "empty",
    "no_target",
    "template_refused",
    "tools_not_rendered",
    "duplicate_bos",
    "mask_not_exact",
    "in_validation",
    "too_long_dropped",
    "truncated",
    "split",
]

KEPT: frozenset[Reason] = frozenset({"truncated", "split"})
"""Reasons of rows that are kept, if not as they came; all others drop the row."""


class BadRow(DataError):
    """A row that can't be kept: dropped into the ledger, or an error where strictness asks."""

    def __init__(
        self, reason: Reason, message: str, hint: str | None = None, tokens_lost: int = 0
    ) -> None:
        super().__init__(message, hint)
        self.reason: Reason = reason
        self.tokens_lost = tokens_lost

    def __reduce__(self) -> tuple[type["BadRow"], tuple[Reason, str, str | None, int]]:  # type: ignore[override]
        return BadRow, (self.reason, self.message, self.hint, self.tokens_lost)
