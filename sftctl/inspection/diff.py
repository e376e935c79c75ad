"""The differences between two checkpoints. Two formats can be compared if tensors have the same
names.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sftctl.checkpoint.tensor_index import StoredTensor
from sftctl.errors import CorruptCheckpoint
from sftctl.inspection.formats.adapters import plain_name
from sftctl.inspection.inspection import MANIFEST_KEYS, Inspection
from sftctl.inspection.tensors.budget import left_out, same_numbers
from sftctl.inspection.tensors.read import STRETCH, located, read

_DEEPEST = 20
_NOT_COUNTERS = ("config", "files", "aliases", "metrics_bytes", "format_version")


@dataclass(frozen=True, slots=True)
class Change:
    """A value that differs. `a` or `b` is None if that checkpoint does not have the value."""

    key: str
    a: Any
    b: Any


@dataclass(frozen=True, slots=True)
class TensorChange:
    """How much a tensor changed from the first checkpoint to the second."""

    name: str
    relative_change: float | None  # |b - a| / |a| over elements finite in both; None if |a| is 0
    max_change: float | None  # the largest |b - a| of an element
    norm_a: float | None
    norm_b: float | None
    num_nan_a: int | None
    num_nan_b: int | None
    is_equal: bool
    error: str | None = None  # why the tensors were not compared


@dataclass(frozen=True, slots=True)
class CheckpointDiff:
    """The result of a comparison. Tensors are sorted by relative change, the largest first."""

    a: Inspection
    b: Inspection
    config: list[Change]
    counters: list[Change]
    tensors: list[TensorChange]
    optimizer: list[TensorChange]
    only_in_a: list[str]
    only_in_b: list[str]
    rng_equal: bool | None  # None: at least one checkpoint stores no random state

    @property
    def nan_appeared(self) -> list[str]:
        """Tensors that have more NaN values in the second checkpoint than in the first."""
        both = self.tensors + self.optimizer
        return [t.name for t in both if (t.num_nan_b or 0) > (t.num_nan_a or 0)]

    def to_json(self) -> dict[str, Any]:
        keys = ("config", "counters", "tensors", "optimizer", "only_in_a", "only_in_b")
        return {
            "a": self.a.to_json(),
            "b": self.b.to_json(),
            **{key: getattr(self, key) for key in keys},
            "nan_appeared": self.nan_appeared,
            "rng_equal": self.rng_equal,
        }


def diff(a: Inspection, b: Inspection) -> CheckpointDiff:
    """Compare two checkpoints. Tensors are read a part at a time.

    An adapter's tensors have other names in peft's files than in a checkpoint. The result uses the
    names of `a`.
    """
    named = _named_as(b, a)
    ours, theirs = _with_aliases(a, named), _with_aliases(named, a)
    reasons = left_out(ours, a.num_bytes) | left_out(theirs, b.num_bytes)
    changes = sorted(_compared(ours, theirs, reasons), key=_rank)
    return CheckpointDiff(
        a=a,
        b=b,
        config=_config_changes(a, b),
        counters=_changes(*_of_both(a, b, _counters(a), _counters(b))),
        tensors=[change for change in changes if not change.name.startswith("optimizer.")],
        optimizer=[change for change in changes if change.name.startswith("optimizer.")],
        only_in_a=sorted(a.tensors.keys() - theirs.keys()),
        only_in_b=sorted(named.tensors.keys() - ours.keys()),
        rng_equal=None if a.rng is None or b.rng is None else a.rng == b.rng,
    )


def _named_as(one: Inspection, other: Inspection) -> Inspection:
    """`one`, but a tensor of an adapter gets the name that `other` uses for it."""
    theirs = {plain_name(name): name for name in (*other.aliases, *other.tensors)}
    names = {name: theirs.get(plain_name(name), name) for name in (*one.aliases, *one.tensors)}
    tensors = {names[name]: tensor for name, tensor in one.tensors.items()}
    aliases = {names[name]: names.get(stored, stored) for name, stored in one.aliases.items()}
    return replace(one, tensors=tensors, aliases=aliases)


def _compared(
    ours: dict[str, StoredTensor], theirs: dict[str, StoredTensor], reasons: dict[str, str]
) -> Iterator[TensorChange]:
    """A TensorChange for every tensor that is in both. Tied tensors are compared once.

    `reasons` names the tensors that are not read, and why.
    """
    known: dict[object, TensorChange] = {}
    for name in sorted(ours.keys() & theirs.keys()):
        if name in reasons:
            yield _failed(name, reasons[name])
            continue
        pair = same_numbers(ours[name]), same_numbers(theirs[name])
        if pair not in known:
            known[pair] = _compare(name, ours[name], theirs[name])
        yield replace(known[pair], name=name)


def _with_aliases(one: Inspection, other: Inspection) -> dict[str, StoredTensor]:
    """The tensors of `one`. Tied tensors appear also under the name that `other` uses."""
    tied = {
        name: one.tensors[stored]
        for name, stored in one.aliases.items()
        if name in other.tensors and stored in one.tensors
    }
    return {**one.tensors, **tied}


def _counters(one: Inspection) -> dict[str, Any]:
    facts = {key: one.facts.get(key) for key in MANIFEST_KEYS if key not in _NOT_COUNTERS}
    facts |= {"loss": one.loss, "next_learning_rate": one.next_learning_rate}
    return _flat(facts) | {"format": one.format}


def _config_changes(a: Inspection, b: Inspection) -> list[Change]:
    ours, theirs = _flat(a.facts.get("config") or {}), _flat(b.facts.get("config") or {})
    return _changes(*_of_both(a, b, ours, theirs))


def _of_both(
    a: Inspection, b: Inspection, ours: dict[str, Any], theirs: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values of `a` and of `b`.

    If the formats differ, a missing key does not mean a change. So only keys that both have are
    returned.
    """
    if a.format == b.format:
        return ours, theirs
    common = [key for key in ours if ours[key] is not None and theirs.get(key) is not None]
    return {key: ours[key] for key in common}, {key: theirs[key] for key in common}


def _changes(ours: dict[str, Any], theirs: dict[str, Any]) -> list[Change]:
    keys = [*ours, *(key for key in theirs if key not in ours)]
    pairs = ((key, ours.get(key), theirs.get(key)) for key in keys)
    return [Change(key, a, b) for key, a, b in pairs if a != b]


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested keys joined as `a.b`. Below a depth of 20, a dict is kept as one value."""
    flat: dict[str, Any] = {}
    pending = [_items("", 0, tree)]
    while pending:
        key, depth, value = next(pending[-1], ("", -1, None))
        if depth < 0:
            pending.pop()
        elif isinstance(value, dict) and depth < _DEEPEST:
            pending.append(_items(f"{key}.", depth, value))
        else:
            flat[key] = value
    return flat


def _items(before: str, depth: int, tree: Mapping[str, Any]) -> Iterator[tuple[str, int, Any]]:
    return ((f"{before}{key}", depth + 1, value) for key, value in tree.items())


def _rank(change: TensorChange) -> tuple[float, str]:
    moved = np.inf if change.relative_change is None else change.relative_change
    return (0.0 if change.is_equal else -moved, change.name)


def _failed(name: str, error: str) -> TensorChange:
    return TensorChange(name, None, None, None, None, None, None, False, error)


def _compare(name: str, a: StoredTensor, b: StoredTensor) -> TensorChange:
    if a.shape != b.shape:
        return _failed(name, f"shape {list(a.shape)} -> {list(b.shape)}")
    try:
        return _compare_numbers(name, located(a), located(b))
    except (CorruptCheckpoint, OSError, ValueError) as problem:
        return _failed(name, str(problem))


def _compare_numbers(name: str, a: StoredTensor, b: StoredTensor) -> TensorChange:
    squares = np.zeros(3)  # sums of squares of a, of b, of their difference
    nan_a, nan_b, largest, is_equal = 0, 0, 0.0, True
    for start in range(0, a.num_elements, STRETCH):
        stop = min(start + STRETCH, a.num_elements)
        x, y = read(a, start, stop), read(b, start, stop)
        nan_a += int(np.isnan(x).sum())
        nan_b += int(np.isnan(y).sum())
        is_equal = is_equal and np.array_equal(x, y, equal_nan=True)
        both = np.isfinite(x) & np.isfinite(y)
        x, y = x[both], y[both]
        moved = y - x
        squares += [float(x @ x), float(y @ y), float(moved @ moved)]
        largest = max(largest, float(np.abs(moved).max(initial=0.0)))
    norm_a, norm_b, norm_moved = np.sqrt(squares).tolist()
    relative = norm_moved / norm_a if norm_a else (0.0 if is_equal else None)
    return TensorChange(name, relative, largest, norm_a, norm_b, nan_a, nan_b, is_equal)
