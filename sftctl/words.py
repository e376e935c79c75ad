"""Counts in words, the same in every message."""


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """`1 rank`, `2,000 ranks`; `plural` where an s does not make one."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
