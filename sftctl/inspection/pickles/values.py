"""Values that opcodes.py read, for people and JSON."""

from typing import Any

from sftctl.inspection.pickles.opcodes import Made, Name, Outside

_DEEPEST = 6
_MOST_ITEMS = 1000


def plain(value: Any, depth: int = 0) -> Any:
    """Numbers, texts, lists and dictionaries; an enumeration's member is its text."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if depth < _DEEPEST and isinstance(value, dict):
        items = list(value.items())[:_MOST_ITEMS]
        return {_text(key): plain(item, depth + 1) for key, item in items}
    if depth < _DEEPEST and isinstance(value, (list, tuple)):
        return [plain(item, depth + 1) for item in value[:_MOST_ITEMS]]
    if isinstance(value, Made):
        return _plain_made(value, depth)
    return value.text if isinstance(value, Name) else f"({type(value).__name__.lower()})"


def _plain_made(made: Made, depth: int) -> Any:
    match made.arguments:
        case (str(text),):
            return text
        case _ if depth < _DEEPEST and isinstance(made.state, dict):
            return plain(made.state, depth + 1)
        case _:
            return f"({made.by})"


def _text(key: Any) -> str:
    return str(key) if isinstance(key, (str, int, float, bool)) else type(key).__name__


def attributes(value: Any) -> dict[str, Any]:
    """What a made object's attributes were to be; nothing where it is something else."""
    state = value.state if isinstance(value, Made) else None
    if isinstance(state, tuple) and len(state) == 2:  # of a class with slots
        state = {**(state[0] or {}), **(state[1] or {})}
    return state if isinstance(state, dict) else {}


def table(value: Any) -> dict[Any, Any]:
    """A dictionary, or an empty one in place of anything else."""
    return value if isinstance(value, dict) else {}


def number(value: Any) -> Any:
    """A number, or None in place of anything else."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number else None


def is_tensor_like(value: Any) -> bool:
    """Whether this stands for a tensor, or a part of one."""
    return isinstance(value, Outside) or (isinstance(value, Made) and "_rebuild_" in value.by)
