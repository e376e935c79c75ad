"""Counts, sizes and durations as text, the same in every message."""

_UNITS = ("B", "kB", "MB", "GB", "TB")
_NEXT_UNIT = 999.95  # from here on one decimal would show as 1000.0


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """`1 rank`, `2,000 ranks`; `plural` if adding an s is wrong."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def format_bytes(num_bytes: float) -> str:
    """`12.3 MB`: powers of 1000, one decimal, in the largest unit that leaves at least 1."""
    value, unit = float(num_bytes), 0
    while value >= _NEXT_UNIT and unit + 1 < len(_UNITS):
        value, unit = value / 1000, unit + 1
    return f"{value:,.{1 if unit else 0}f} {_UNITS[unit]}"


def format_duration(seconds: float) -> str:
    """`1:32` for 92 seconds; `2:05:00` from one hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
