"""Read a pickle without unpickling it: its opcodes become plain values, its calls stay names.

Nothing is imported and nothing is called, whatever the pickle asks for: a class or function is a
`Name`, what it would have made is a `Made`. So a hostile pickle is as harmless as a text that
speaks of a crime, and what it says can still be shown.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any, Protocol, cast

_MOST_OPCODES = 4_000_000
_LONGEST_NAME = 500


class Readable(Protocol):
    """What a pickle is read from."""

    def read(self, count: int, /) -> bytes: ...

    def readline(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Name:
    """A class or function that a pickle names: "torch._utils._rebuild_tensor_v2"."""

    text: str


@dataclass(eq=False, slots=True)
class Made:
    """What a call named in a pickle would have made."""

    by: str  # the name of what was to be called
    arguments: tuple[Any, ...]
    state: Any = None  # what the object's attributes were to be


@dataclass(frozen=True, slots=True, eq=False)
class Outside:
    """Something that is not in the pickle itself: torch's storages."""

    key: Any


@dataclass(frozen=True, slots=True)
class Reading:
    """The value of a pickle, and every name in it."""

    value: Any
    names: frozenset[str]


def read_pickle(stream: Readable) -> Reading:
    """Read one pickle up to its end; raises ValueError where it is none or too long."""
    machine, source = _Machine(), cast(IO[bytes], stream)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(source)):
            if count >= _MOST_OPCODES:
                raise ValueError(f"more than {_MOST_OPCODES} opcodes")
            machine.run(opcode.name, argument)
    except (IndexError, KeyError, TypeError, AttributeError, OverflowError) as problem:
        raise ValueError(f"not a pickle: {type(problem).__name__}: {problem}") from problem
    return Reading(machine.stack[-1] if machine.stack else None, frozenset(machine.names))


@dataclass(slots=True)
class _Machine:
    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)  # heights of the stack
    memo: dict[int, Any] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)

    def run(self, opcode: str, argument: Any) -> None:
        if opcode in _LITERALS:
            self.stack.append(argument)
        elif opcode in _MAKERS:
            self.stack.append(_MAKERS[opcode](self, argument))
        elif opcode in _ACTIONS:
            _ACTIONS[opcode](self, argument)
        else:
            raise ValueError(f"opcode {opcode} has no place in a checkpoint")

    def last(self, count: int) -> list[Any]:
        """Take that many values off the stack."""
        if len(self.stack) < count:
            raise IndexError("the stack is empty")
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return items

    def since_mark(self) -> list[Any]:
        return self.last(len(self.stack) - self.marks.pop())

    def drop(self) -> None:
        self.since_mark()

    def name(self, module: str, name: str) -> Name:
        text = ".".join((module, name))
        if len(text) > _LONGEST_NAME:
            raise ValueError(f"a name of {len(text)} letters")
        self.names.add(text)
        return Name(text)

    def call(self, function: Any, arguments: Any, *_: Any) -> Any:
        """What a call makes: the containers that are plain values, else a `Made`."""
        by = function.text if isinstance(function, Name) else "?"
        given = arguments if isinstance(arguments, tuple) else (arguments,)
        if by in ("collections.OrderedDict", "collections.defaultdict"):
            return {}
        return given[0] if by == "torch.Size" and given else Made(by, given)

    def fill(self, items: list[Any]) -> None:
        """Put keys and values into the dictionary on top."""
        if isinstance(self.stack[-1], dict):
            pairs = zip(items[::2], items[1::2], strict=True)
            self.stack[-1].update((_key(key), value) for key, value in pairs)

    def extend(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def build(self, state: Any) -> None:
        if isinstance(self.stack[-1], Made):
            self.stack[-1].state = state

    def pop(self) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.stack.pop()


def _key(value: Any) -> Any:
    """A key that can be hashed; nothing nested, for that would be hashed to any depth."""
    if isinstance(value, tuple) and any(isinstance(item, tuple) for item in value):
        return f"a tuple of {len(value)}"
    hash(value)
    return value


def _dict_of(items: list[Any]) -> dict[Any, Any]:
    return {_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)}


_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("BYTEARRAY8", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
}
_MAKERS: dict[str, Callable[[_Machine, Any], Any]] = {
    "NONE": lambda m, _: None,
    "NEWTRUE": lambda m, _: True,
    "NEWFALSE": lambda m, _: False,
    "EMPTY_TUPLE": lambda m, _: (),
    "EMPTY_LIST": lambda m, _: [],
    "EMPTY_SET": lambda m, _: [],
    "EMPTY_DICT": lambda m, _: {},
    "LIST": lambda m, _: m.since_mark(),
    "DICT": lambda m, _: _dict_of(m.since_mark()),
    "TUPLE": lambda m, _: tuple(m.since_mark()),
    "FROZENSET": lambda m, _: tuple(m.since_mark()),
    "TUPLE1": lambda m, _: tuple(m.last(1)),
    "TUPLE2": lambda m, _: tuple(m.last(2)),
    "TUPLE3": lambda m, _: tuple(m.last(3)),
    "DUP": lambda m, _: m.stack[-1],
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, key: m.memo[key]),
    "GLOBAL": lambda m, text: m.name(*text.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m.name(*m.last(2)),
    **dict.fromkeys(
        ("EXT1", "EXT2", "EXT4"), lambda m, code: m.name("copyreg", f"extension_{code}")
    ),
    "INST": lambda m, text: m.call(m.name(*text.split(" ", 1)), tuple(m.since_mark())),
    "OBJ": lambda m, _: m.call(*(lambda of, *rest: (of, rest))(*m.since_mark())),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda m, _: m.call(*m.last(2))),
    "NEWOBJ_EX": lambda m, _: m.call(*m.last(3)),
    "BINPERSID": lambda m, _: Outside(m.last(1)[0]),
}
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda m, _: None),
    "MARK": lambda m, _: m.marks.append(len(m.stack)),
    "POP": lambda m, _: m.pop(),
    "POP_MARK": lambda m, _: m.drop(),
    "MEMOIZE": lambda m, _: m.memo.__setitem__(len(m.memo), m.stack[-1]),
    **dict.fromkeys(
        ("PUT", "BINPUT", "LONG_BINPUT"), lambda m, key: m.memo.__setitem__(key, m.stack[-1])
    ),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), lambda m, _: m.extend(m.since_mark())),
    "APPEND": lambda m, _: m.extend(m.last(1)),
    "SETITEMS": lambda m, _: m.fill(m.since_mark()),
    "SETITEM": lambda m, _: m.fill(m.last(2)),
    "BUILD": lambda m, _: m.build(m.last(1)[0]),
}
