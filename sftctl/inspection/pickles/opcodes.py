"""Read a pickle without unpickling it: opcodes become plain values, and calls are only named.

Nothing is imported and nothing is called, even if the pickle asks for it. A class or function is a
`Name`; the object that a call would have made is a `Made`. So a hostile pickle can do nothing, and
its content can still be shown.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any, Protocol, cast

_LONGEST_NAME = 500


class Readable(Protocol):
    """The source of a pickle."""

    def read(self, count: int, /) -> bytes: ...

    def readline(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Name:
    """A class or function named in a pickle: "torch._utils._rebuild_tensor_v2"."""

    text: str


@dataclass(eq=False, slots=True)
class Made:
    """The object that a call in a pickle would have made."""

    by: str  # the called class or function
    arguments: tuple[Any, ...]
    state: Any = None  # the attributes that the object would have got


@dataclass(frozen=True, slots=True, eq=False)
class Outside:
    """A value stored outside the pickle: one of torch's storages."""

    key: Any


@dataclass(frozen=True, slots=True)
class Reading:
    """The value of a pickle, and every name in it."""

    value: Any
    names: frozenset[str]


def read_pickle(stream: Readable, max_opcodes: int = 4_000_000) -> Reading:
    """Read one pickle up to its end; raises ValueError if it is not a pickle, or too long."""
    machine, source = _Machine(), cast(IO[bytes], stream)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(source)):
            if count >= max_opcodes:
                raise ValueError(f"more than {max_opcodes} opcodes")
            machine.run(opcode.name, argument)
    except (IndexError, KeyError, TypeError, AttributeError, OverflowError) as problem:
        raise ValueError(f"not a pickle: {type(problem).__name__}: {problem}") from problem
    return Reading(machine.stack[-1] if machine.stack else None, frozenset(machine.names))


@dataclass(slots=True)
class _Machine:
    """The machine that pickle's opcodes are written for, without calls and imports."""

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
            raise ValueError(f"opcode {opcode} does not occur in checkpoints")

    def last(self, count: int) -> list[Any]:
        """Take `count` values off the stack."""
        if len(self.stack) < count:
            raise IndexError("the stack is empty")
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return items

    def since_mark(self) -> list[Any]:
        """Take everything above the last mark off the stack."""
        return self.last(len(self.stack) - self.marks.pop())

    def name(self, module: str, name: str) -> Name:
        """A class or function; its name is recorded."""
        text = f"{module}.{name}"
        if len(text) > _LONGEST_NAME:
            raise ValueError(f"a name of {len(text)} characters")
        self.names.add(text)
        return Name(text)

    def global_name(self, argument: str) -> Name:
        """The name in an argument "module name"."""
        return self.name(*argument.split(" ", 1))

    def extension(self, code: int) -> Name:
        return self.name("copyreg", f"extension_{code}")

    def instance(self, argument: str) -> Any:
        """Protocol 0's call: the class is in the argument, its arguments follow the mark."""
        return self.call(self.global_name(argument), tuple(self.since_mark()))

    def object(self) -> Any:
        """Protocol 1's call: the class and its arguments follow the mark."""
        function, *arguments = self.since_mark()
        return self.call(function, arguments)

    def call(self, function: Any, arguments: Any, *_keywords: Any) -> Any:
        """What a call would make: a dict or tuple for known containers, else a `Made`."""
        by = function.text if isinstance(function, Name) else "?"
        given = arguments if isinstance(arguments, tuple) else (arguments,)
        if by in ("collections.OrderedDict", "collections.defaultdict"):
            return {}
        return given[0] if by == "torch.Size" and given else Made(by, given)

    def set_items(self, items: list[Any]) -> None:
        """Put keys and values into the dictionary on top."""
        if isinstance(self.stack[-1], dict):
            self.stack[-1].update(_dict_of(items))

    def extend(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def set_state(self, state: Any) -> None:
        if isinstance(self.stack[-1], Made):
            self.stack[-1].state = state

    def remember(self, key: int) -> None:
        self.memo[key] = self.stack[-1]

    def mark(self) -> None:
        self.marks.append(len(self.stack))

    def pop(self) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.stack.pop()


def _key(value: Any) -> Any:
    """A key that can be hashed. Nested tuples can't: Python hashes them to any depth."""
    if isinstance(value, tuple) and any(isinstance(item, tuple) for item in value):
        return f"a tuple of {len(value)}"
    hash(value)
    return value


def _dict_of(items: list[Any]) -> dict[Any, Any]:
    return {_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)}


_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    "BYTEARRAY8", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
}  # fmt: skip
"""Opcodes whose argument is their value."""

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
    "GET": lambda m, key: m.memo[key],
    "BINGET": lambda m, key: m.memo[key],
    "LONG_BINGET": lambda m, key: m.memo[key],
    "GLOBAL": _Machine.global_name,
    "STACK_GLOBAL": lambda m, _: m.name(*m.last(2)),
    "EXT1": _Machine.extension,
    "EXT2": _Machine.extension,
    "EXT4": _Machine.extension,
    "INST": _Machine.instance,
    "OBJ": lambda m, _: m.object(),
    "REDUCE": lambda m, _: m.call(*m.last(2)),
    "NEWOBJ": lambda m, _: m.call(*m.last(2)),
    "NEWOBJ_EX": lambda m, _: m.call(*m.last(3)),
    "BINPERSID": lambda m, _: Outside(m.last(1)[0]),
}
"""Opcodes that put a value on the stack, from the machine and the opcode's argument."""

_ACTIONS: dict[str, Callable[[_Machine, Any], object]] = {
    "PROTO": lambda m, _: None,
    "FRAME": lambda m, _: None,
    "STOP": lambda m, _: None,
    "MARK": lambda m, _: m.mark(),
    "POP": lambda m, _: m.pop(),
    "POP_MARK": lambda m, _: m.since_mark(),
    "MEMOIZE": lambda m, _: m.remember(len(m.memo)),
    "PUT": _Machine.remember,
    "BINPUT": _Machine.remember,
    "LONG_BINPUT": _Machine.remember,
    "APPEND": lambda m, _: m.extend(m.last(1)),
    "APPENDS": lambda m, _: m.extend(m.since_mark()),
    "ADDITEMS": lambda m, _: m.extend(m.since_mark()),
    "SETITEM": lambda m, _: m.set_items(m.last(2)),
    "SETITEMS": lambda m, _: m.set_items(m.since_mark()),
    "BUILD": lambda m, _: m.set_state(m.last(1)[0]),
}
"""Opcodes that only change the machine."""
