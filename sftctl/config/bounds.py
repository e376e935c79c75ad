"""The allowed range of a number, written in the type of its configuration field."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_args

from sftctl.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Bounds:
    """The values that a number may have: at_least <= value <= at_most, and value < below."""

    at_least: float
    at_most: float = math.inf
    below: float = math.inf

    def problem(self, value: float) -> str | None:
        """Why `value` is not allowed; None if it is."""
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
"""The rank of an adapter's matrices."""
Count = Annotated[int, Bounds(at_least=1, at_most=10**9)]
CountFrom0 = Annotated[int, Bounds(at_least=0, at_most=10**9)]
Amount = Annotated[float, Bounds(at_least=0)]
Share = Annotated[float, Bounds(at_least=0, at_most=1)]
PartOfOne = Annotated[float, Bounds(at_least=0, below=1)]


def check_factors(factors: Mapping[str, Any]) -> None:
    """ConfigError if a factor in `optim.groups` is not a finite number from 0 on."""
    for pattern, factor in factors.items():
        is_number = isinstance(factor, (int, float)) and not isinstance(factor, bool)
        if not is_number or Bounds(at_least=0).problem(factor):
            raise ConfigError(
                f"optim.groups: {pattern} = {factor!r}, which is not a factor",
                hint='a number from 0 on, as in [optim.groups] and "layers[:4]" = 0.1',
            )


def bounds_in(hint: Any) -> list[Bounds]:
    """The bounds in `Annotated[int, Bounds(...)] | None` and the like."""
    if isinstance(hint, Bounds):
        return [hint]
    parts = (*getattr(hint, "__metadata__", ()), *get_args(hint))
    return [bounds for part in dict.fromkeys(parts) for bounds in bounds_in(part)]
