"""The allowed range of a number. It is a part of the type of a configuration field."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_args

from sftctl.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Bounds:
    """A number is allowed if at_least <= value <= at_most, and value < below."""

    at_least: float
    at_most: float = math.inf
    below: float = math.inf

    def problem(self, value: float) -> str | None:
        """The reason why `value` is not allowed. None if it is allowed."""
        if not math.isfinite(value):
            return f"{value} is not a finite number"
        if value < self.at_least:
            return f"{value} is too small; at least {self.at_least}"
        if value > self.at_most:
            return f"{value} is too large; at most {self.at_most}"
        if value >= self.below:
            return f"{value} is too large; it must be below {self.below}"
        return None


RANKS = Bounds(at_least=1, at_most=65536)
"""The allowed ranks of an adapter."""
Count = Annotated[int, Bounds(at_least=1, at_most=10**9)]
CountFrom0 = Annotated[int, Bounds(at_least=0, at_most=10**9)]
Amount = Annotated[float, Bounds(at_least=0)]
Share = Annotated[float, Bounds(at_least=0, at_most=1)]
PartOfOne = Annotated[float, Bounds(at_least=0, below=1)]


def check_factors(factors: Mapping[str, Any]) -> None:
    """Raise ConfigError if a factor in `optim.groups` is negative or not a finite number."""
    for pattern, factor in factors.items():
        is_number = isinstance(factor, (int, float)) and not isinstance(factor, bool)
        if not is_number or Bounds(at_least=0).problem(factor):
            raise ConfigError(
                f"optim.groups: {pattern} = {factor!r}, which is not a factor",
                hint='a factor is a number of at least 0, as in "layers[:4]" = 0.1',
            )


def bounds_in(hint: Any) -> list[Bounds]:
    """All Bounds inside a type such as `Annotated[int, Bounds(...)] | None`."""
    if isinstance(hint, Bounds):
        return [hint]
    parts = (*getattr(hint, "__metadata__", ()), *get_args(hint))
    return [bounds for part in dict.fromkeys(parts) for bounds in bounds_in(part)]
