"""Facts about a dotted key such as `optim.beta1`: its type, default, bounds, and documentation."""

import ast
import inspect
from dataclasses import fields
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from sftctl.config.bounds import bounds_in
from sftctl.config.schema import SECTIONS


def keys() -> list[str]:
    """All dotted keys, in the order of the schema."""
    return [f"{name}.{item.name}" for name, cls in SECTIONS.items() for item in fields(cls)]


def default_of(key: str) -> object:
    """The default value of a dotted key. None: unset."""
    section, name = key.split(".")
    return next(item.default for item in fields(SECTIONS[section]) if item.name == name)


def type_of(key: str) -> Any:
    """The type of a dotted key, without its bounds."""
    section, name = key.split(".")
    return get_type_hints(SECTIONS[section])[name]


def choices(key: str) -> tuple[str, ...]:
    """The words that a dotted key accepts. Empty if it also accepts other values."""
    hint = type_of(key)
    return get_args(hint) if get_origin(hint) is Literal else ()


def beyond_bounds(key: str, value: object) -> str | None:
    """The reason why a value is out of bounds for a dotted key. None if it is allowed."""
    section, name = key.split(".")
    return beyond_bounds_of(SECTIONS[section], name, value)


def beyond_bounds_of(owner: type, name: str, value: object) -> str | None:
    """The reason why a value is out of bounds for a dataclass field. None if it is allowed."""
    if not isinstance(value, (int, float)):
        return None
    hint = get_type_hints(owner, include_extras=True)[name]
    return next((found for bounds in bounds_in(hint) if (found := bounds.problem(value))), None)


@cache
def documentation() -> dict[str, str]:
    """Dotted key -> the docstring under its field. The help texts and docs/config.md show it."""
    texts: dict[tuple[str, str], str] = {}
    for module in dict.fromkeys(map(inspect.getmodule, SECTIONS.values())):
        assert module is not None
        texts |= _texts_in(inspect.getsource(module))
    return {key: _documented(key, texts) for key in keys()}


def _texts_in(source: str) -> dict[tuple[str, str], str]:
    """(class, field) -> the docstring under the field."""
    return {
        (node.name, name): words
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef)
        for item, text in zip(node.body, node.body[1:], strict=False)
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
        if isinstance(words := text.value.value, str) and (name := item.target.id)
    }


def _documented(key: str, texts: dict[tuple[str, str], str]) -> str:
    section, name = key.split(".")
    one_of = f" One of {', '.join(choices(key))}." if choices(key) else ""
    return " ".join(texts.get((SECTIONS[section].__name__, name), "").split()) + one_of
