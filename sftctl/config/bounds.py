"""The allowed range of a number, written in the type of its configuration field."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, get_args


@dataclass(frozen=True, slots=True)
class Bounds:
    """The values that a number may have: at_least <= value <= at_most, and value < below."""

    at_least: float
    at_most: float = math.inf
    below: float = math.inf

    def problem(self, value: float) -> str | None:
        """What is wrong with `value`, or None."""
        if not math.isfinite(value):
            return f"{value} is not a finite number"
        if value < self.at_least:
            return f"{value} is too small; at least {self.at_least}"
        if value > self.at_most:
            return f"{value} is too large; at most {self.at_most}"
        if value >= self.below:
            return f"{value} is too large; it must be below {self.below}"
        return None


Count = Annotated[int, Bounds(at_least=1, at_most=10**9)]
CountFrom0 = Annotated[int, Bounds(at_least=0, at_most=10**9)]
Amount = Annotated[float, Bounds(at_least=0)]
Share = Annotated[float, Bounds(at_least=0, at_most=1)]
PartOfOne = Annotated[float, Bounds(at_least=0, below=1)]


def bounds_in(hint: Any) -> list[Bounds]:
    """The bounds in `Annotated[int, Bounds(...)] | None` and the like."""
    if isinstance(hint, Bounds):
        return [hint]
    parts = (*getattr(hint, "__metadata__", ()), *get_args(hint))
    return [bounds for part in dict.fromkeys(parts) for bounds in bounds_in(part)]
