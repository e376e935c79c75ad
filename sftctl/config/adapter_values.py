"""Find impossible values in the adapter_config.json of a LoRA adapter. Does not load torch."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from sftctl.config.bounds import RANKS, Bounds

_AMOUNTS = Bounds(at_least=0)
_NUMBERS = {
    "r": (int, RANKS),
    "lora_alpha": (float, _AMOUNTS),
    "lora_dropout": (float, Bounds(at_least=0, below=1)),
}
_BY_LAYER = {"rank_pattern": (int, RANKS), "alpha_pattern": (float, _AMOUNTS)}
"""Tables: name of a layer -> number."""
_NAMES = {"target_modules": True, "exclude_modules": True, "modules_to_save": False}
"""Lists of names. True: a regular expression is also allowed."""


def nonsense(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (key, reason) for each key with an impossible value."""
    for key, (kind, bounds) in _NUMBERS.items():
        if key in settings and settings[key] is None:
            yield key, "not a number"
        elif problem := _number_problem(settings.get(key), kind, bounds):
            yield key, problem
    for key, (kind, bounds) in _BY_LAYER.items():
        if problem := _table_problem(settings.get(key), kind, bounds):
            yield key, problem
    for key, may_be_pattern in _NAMES.items():
        if problem := _names_problem(settings.get(key), may_be_pattern=may_be_pattern):
            yield key, problem
    if settings.get("target_modules") == [] and not settings.get("target_parameters"):
        yield "target_modules", "names no layer"


def _number_problem(value: object, kind: type, bounds: Bounds) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, kind)):
        return f"not a{' whole' if kind is int else ''} number"
    assert isinstance(value, (int, float))
    return bounds.problem(value)


def _table_problem(value: object, kind: type, bounds: Bounds) -> str | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        return "not a table that has a number for each layer name"
    found = ((name, _number_problem(one, kind, bounds)) for name, one in value.items())
    return next((f"{name}: {problem}" for name, problem in found if problem), None)


def _names_problem(value: object, *, may_be_pattern: bool) -> str | None:
    if value is None or value == []:
        return None
    if isinstance(value, str) and may_be_pattern:
        try:
            re.compile(value)
        except re.error as problem:
            return f"not a regular expression: {problem}"
        return None
    is_list = isinstance(value, list) and all(isinstance(one, str) and one for one in value)
    return None if is_list else "not a list of names"
