"""Values that opcodes.py read, made printable; and safe ways to look into them."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from sftctl.inspection.pickles.opcodes import Made, Name, Outside

_DEEPEST = 6
_MOST_ITEMS = 1000  # of one container
_MOST_ITEMS_IN_ALL = 100_000  # a pickle may hold the same list a thousand times, and so on inwards


def plain(value: Any) -> Any:
    """The value as numbers, texts, lists and dictionaries; deep or long ones are shortened.

    An enumeration's member becomes its text, an object its attributes.
    """
    return _plain(value, 0, iter(range(_MOST_ITEMS_IN_ALL)))


def _plain(value: Any, depth: int, left: Iterator[int]) -> Any:
    """`left` runs out when enough items were taken from all containers together."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Made):
        match value.arguments:
            case (str(text),):
                return text
        if not isinstance(value.state, dict) or depth >= _DEEPEST:
            return f"({value.by})"
        value, depth = value.state, depth + 1
    if depth < _DEEPEST and isinstance(value, dict):
        items = zip(islice(value.items(), _MOST_ITEMS), left, strict=False)
        return {_text(key): _plain(item, depth + 1, left) for (key, item), _ in items}
    if depth < _DEEPEST and isinstance(value, (list, tuple)):
        taken = zip(islice(value, _MOST_ITEMS), left, strict=False)
        return [_plain(item, depth + 1, left) for item, _ in taken]
    return value.text if isinstance(value, Name) else f"({type(value).__name__.lower()})"


def _text(key: Any) -> str:
    return str(key) if isinstance(key, (str, int, float, bool)) else type(key).__name__


def attributes(value: Any) -> dict[str, Any]:
    """The attributes that a `Made` object would have; empty for any other value."""
    state = value.state if isinstance(value, Made) else None
    if isinstance(state, tuple) and len(state) == 2:  # a class with slots: (__dict__, slots)
        return {**table(state[0]), **table(state[1])}
    return table(state)


def table(value: Any) -> dict[Any, Any]:
    """A dictionary, or an empty one in place of anything else."""
    return value if isinstance(value, dict) else {}


def number(value: Any) -> Any:
    """A number, or None in place of anything else."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number else None


def sizes(value: Any) -> tuple[int, ...]:
    """A shape or offsets; empty in place of anything else."""
    is_shape = isinstance(value, (list, tuple)) and all(map(_is_size, value))
    return tuple(value) if is_shape else ()


def size(value: Any) -> int:
    """A length or place; 0 in place of anything else."""
    return int(value) if _is_size(value) else 0


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and value >= 0


def is_tensor_like(value: Any) -> bool:
    """Whether this would be a tensor, or its storage."""
    return isinstance(value, Outside) or (isinstance(value, Made) and "_rebuild_" in value.by)
