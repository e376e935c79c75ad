"""What the schema says about a dotted key: type, default, bounds, documentation."""

import ast
import inspect
from dataclasses import fields
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from sftctl.config import schema
from sftctl.config.bounds import bounds_in
from sftctl.config.schema import SECTIONS


def keys() -> list[str]:
    """All dotted keys, in the order of the schema."""
    return [f"{name}.{item.name}" for name, cls in SECTIONS.items() for item in fields(cls)]


def default_of(key: str) -> object:
    """The default of a dotted key; None if it is unset."""
    section, name = key.split(".")
    return next(item.default for item in fields(SECTIONS[section]) if item.name == name)


def type_of(key: str) -> Any:
    """The type of a dotted key, without its bounds."""
    section, name = key.split(".")
    return get_type_hints(SECTIONS[section])[name]


def choices(key: str) -> tuple[str, ...]:
    """The words that a dotted key accepts; empty if it accepts other values too."""
    hint = type_of(key)
    return get_args(hint) if get_origin(hint) is Literal else ()


def beyond_bounds(key: str, value: object) -> str | None:
    """What is wrong with a value of the right type for a dotted key, or None."""
    if not isinstance(value, (int, float)):
        return None
    section, name = key.split(".")
    hint = get_type_hints(SECTIONS[section], include_extras=True)[name]
    return next((found for bounds in bounds_in(hint) if (found := bounds.problem(value))), None)


@cache
def documentation() -> dict[str, str]:
    """The docstring under each field, by dotted key: the help texts and docs/config.md."""
    section_of = {cls.__name__: name for name, cls in SECTIONS.items()}
    result: dict[str, str] = {}
    for node in ast.parse(inspect.getsource(schema)).body:
        if isinstance(node, ast.ClassDef) and node.name in section_of:
            for item, text in zip(node.body, node.body[1:], strict=False):
                match item, text:
                    case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(words))):
                        key = f"{section_of[node.name]}.{name}"
                        one_of = f" One of {', '.join(choices(key))}." if choices(key) else ""
                        result[key] = " ".join(words.split()) + one_of
    return result
