"""Make the values from opcodes.py printable, and look into them without errors."""

from itertools import islice, takewhile
from typing import Any

from sftctl.checkpoint.safetensors_header import MOST_AXES
from sftctl.inspection.pickles.opcodes import CallResult, Name, PersistentId

_DEEPEST = 6
_MOST_ITEMS = 1000  # in one container
_LONGEST_TEXT = 20_000  # characters
_ITEMS_IN_ALL = 100_000
_ITEM_CHARACTERS = 64  # a text counts as one more item for each 64 characters
_LARGEST = 1 << 64


class Budget:
    """Limits how many items are printed for one file.

    A small file could otherwise be printed as billions of items, if its lists hold the same list
    many times.
    """

    def __init__(self, items: int = _ITEMS_IN_ALL) -> None:
        self._left = items

    def take(self, value: Any) -> bool:
        """Count one more item. Returns whether it is still within the limit."""
        length = len(value) if isinstance(value, str) else 0
        self._left -= 1 + min(length, _LONGEST_TEXT) // _ITEM_CHARACTERS
        return self._left >= 0


def plain(value: Any, budget: Budget | None = None) -> Any:
    """The value as numbers, strings, lists and dicts. Deep or long values are shortened.

    A member of an enumeration becomes its string, an object a dict of its attributes. All values of
    one file should share a `budget`.
    """
    return _plain(value, 0, budget or Budget())


def _plain(value: Any, depth: int, budget: Budget) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return _leaf(value)
    if isinstance(value, CallResult):
        match value.arguments:
            case (str(text),):
                return _leaf(text)
        if not isinstance(value.state, dict) or depth >= _DEEPEST:
            return f"({value.by})"
        value, depth = value.state, depth + 1
    if depth < _DEEPEST and isinstance(value, dict):
        items = islice(value.items(), _MOST_ITEMS)
        taken = takewhile(lambda pair: budget.take(pair[0]) and budget.take(pair[1]), items)
        return {key_text(key): _plain(item, depth + 1, budget) for key, item in taken}
    if depth < _DEEPEST and isinstance(value, (list, tuple)):
        return [
            _plain(item, depth + 1, budget)
            for item in takewhile(budget.take, islice(value, _MOST_ITEMS))
        ]
    return value.text if isinstance(value, Name) else f"({type(value).__name__.lower()})"


def _leaf(value: Any) -> Any:
    """A number or string, shortened if it is long."""
    if isinstance(value, int) and not -_LARGEST < value < _LARGEST:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, str) and len(value) > _LONGEST_TEXT:
        return f"{value[:_LONGEST_TEXT]} … ({len(value)} characters)"
    return value


def key_text(key: Any) -> str:
    """The key of a dict as text; for a container or an object, only the name of its type."""
    return str(_leaf(key)) if isinstance(key, (str, int, float)) else type(key).__name__


def attributes(value: Any) -> dict[str, Any]:
    """The attributes that the object of a `CallResult` would have; {} for any other value."""
    state = value.state if isinstance(value, CallResult) else None
    if isinstance(state, tuple) and len(state) == 2:  # a class with slots has (__dict__, slots)
        return {**table(state[0]), **table(state[1])}
    return table(state)


def table(value: Any) -> dict[Any, Any]:
    """The value if it is a dict, else {}."""
    return value if isinstance(value, dict) else {}


def number(value: Any) -> Any:
    """The value if it is a number of at most 64 bits, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if isinstance(value, float) or -_LARGEST < value < _LARGEST else None


def sizes(value: Any) -> tuple[int, ...]:
    """The value as a tuple if it is a shape or a list of offsets, else ()."""
    is_list = isinstance(value, (list, tuple)) and len(value) <= MOST_AXES
    return tuple(value) if is_list and all(map(_is_size, value)) else ()


def size(value: Any) -> int:
    """The value if it is a length or an offset, else 0."""
    return int(value) if _is_size(value) else 0


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value < 1 << 63


def is_tensor_like(value: Any) -> bool:
    """Whether the value stands for a tensor or a storage."""
    return isinstance(value, PersistentId) or (
        isinstance(value, CallResult) and "_rebuild_" in value.by
    )
