"""Read a pickle without unpickling it: opcodes become plain values. Nothing is called or imported.

A class or function becomes a `Name`. The object that a call would create becomes a `CallResult`. So
a hostile pickle can do nothing, and its content can still be shown.
"""

import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any, Protocol, cast

from sftctl.inspection.pickles.allowed import FullName, code_in

MOST_OPCODES = 2_000_000
_LONGEST_NAME = 500
_MOST_NAMES = 10_000  # a checkpoint has a few dozen
_LONGEST_KEY = 16  # items of a tuple that is a key, because Python hashes all of them at each use
_OPCODES = {opcode.code.encode("latin1"): opcode for opcode in pickletools.opcodes}


class Readable(Protocol):
    """A stream that holds a pickle."""

    def read(self, count: int, /) -> bytes: ...

    def readline(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Name:
    """A class or function that a pickle names."""

    module: str
    qualified: str

    @property
    def text(self) -> str:
        """The name in one text, such as "torch._utils._rebuild_tensor_v2"."""
        return f"{self.module}.{self.qualified}"


@dataclass(eq=False, slots=True, repr=False)
class CallResult:
    """The object that a call in a pickle would have created."""

    by: str  # the called class or function
    arguments: tuple[Any, ...]
    state: Any = None  # the attributes that the object would have received


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class PersistentId:
    """The key of a value outside the pickle, such as a storage of torch."""

    key: Any


@dataclass(frozen=True, slots=True)
class Reading:
    """The value of a pickle, and the names of code in it."""

    value: Any
    code: frozenset[str]


class BadPickle(ValueError):
    """Not a pickle, or a pickle that is too long. `code`: the names of code that were found."""

    def __init__(self, problem: str, code: frozenset[str]) -> None:
        super().__init__(problem)
        self.code = code


def read_pickle(stream: Readable, max_opcodes: int = MOST_OPCODES) -> Reading:
    """Read one pickle up to its end. Raises BadPickle."""
    machine = _Machine()
    try:
        for count, (opcode, argument) in enumerate(_opcodes(stream)):
            if count >= max_opcodes:
                raise ValueError(f"more than {max_opcodes} opcodes")
            machine.run(opcode, argument)
        value = machine.stack[(machine.marks or [0])[-1] :][-1]  # above the last mark, as in Python
    except (IndexError, KeyError, TypeError, AttributeError, OverflowError) as problem:
        reason = f"not a pickle: {type(problem).__name__}: {problem}"
        raise BadPickle(reason, machine.code) from problem
    except ValueError as problem:
        raise BadPickle(str(problem), machine.code) from problem
    return Reading(value, machine.code)


def _opcodes(stream: Readable) -> Iterator[tuple[str, Any]]:
    """Each opcode with its argument, up to STOP. Like pickletools.genops, but twice as fast."""
    source = cast(IO[bytes], stream)
    while code := stream.read(1):
        opcode = _OPCODES.get(code)
        if opcode is None:
            raise ValueError(f"opcode {code!r} is unknown")
        yield opcode.name, None if opcode.arg is None else opcode.arg.reader(source)
        if code == b".":
            return
    raise ValueError("it ends before its last opcode")


@dataclass(slots=True)
class _Machine:
    """The stack machine that executes pickle opcodes, without calls and imports."""

    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)  # the height of the stack at each mark
    memo: dict[int, Any] = field(default_factory=dict)
    names: set[FullName] = field(default_factory=set)
    called: set[FullName] = field(default_factory=set)

    @property
    def code(self) -> frozenset[str]:
        """The names so far that count as code."""
        return code_in(self.names, self.called)

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
        """Pop `count` values from the stack."""
        if len(self.stack) < count:
            raise IndexError("the stack is empty")
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return items

    def since_mark(self) -> list[Any]:
        """Pop everything above the last mark from the stack."""
        return self.last(len(self.stack) - self.marks.pop())

    def name(self, module: Any, name: Any) -> Name:
        """A class or function. Its name is recorded."""
        if not (isinstance(module, str) and isinstance(name, str)):
            self.names.add(("?", "a name that the pickle computes"))
            return Name("?", "?")
        if (length := len(module) + len(name) + 1) > _LONGEST_NAME:
            self.names.add((module[:100], name[:100]))
            raise ValueError(f"a name of {length} characters")
        self.names.add((module, name))
        if len(self.names) > _MOST_NAMES:
            raise ValueError(f"more than {_MOST_NAMES} names of classes and functions")
        return Name(module, name)

    def global_name(self, argument: str) -> Name:
        """The class or function that an argument such as "os system" names."""
        return self.name(*argument.split(" ", 1))

    def extension(self, code: int) -> Name:
        return self.name("copyreg", f"extension_{code}")

    def instance(self, argument: str) -> Any:
        """The call of protocol 0. `argument` names the class; its arguments are above the mark."""
        return self.call(self.global_name(argument), tuple(self.since_mark()))

    def object(self) -> Any:
        """The call of protocol 1. The class and its arguments are above the mark."""
        function, *arguments = self.since_mark()
        return self.call(function, tuple(arguments))

    def call(self, function: Any, arguments: Any) -> Any:
        """The call of a function, or of a class with its `__init__`.

        Classes among the arguments count as called too: `copyreg._reconstructor` calls them.
        """
        given = arguments if isinstance(arguments, tuple) else ()
        names = [one for one in (function, *given) if isinstance(one, Name)]
        self.called.update((name.module, name.qualified) for name in names)
        return self.new(function, arguments)

    def new(self, function: Any, arguments: Any, *_keywords: Any) -> Any:
        """What a call creates: a dict or tuple for some known types, else a `CallResult`."""
        by = function.text if isinstance(function, Name) else "?"
        given = arguments if isinstance(arguments, tuple) else (arguments,)
        if by in ("collections.OrderedDict", "collections.defaultdict"):
            return {}
        return given[0] if by == "torch.Size" and given else CallResult(by, given)

    def set_items(self, items: list[Any]) -> None:
        """Put keys and values into the dict on top of the stack."""
        if isinstance(self.stack[-1], dict):
            self.stack[-1].update(_dict_of(items))

    def extend(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def set_state(self, state: Any) -> None:
        if isinstance(self.stack[-1], CallResult):
            self.stack[-1].state = state

    def remember(self, key: int) -> None:
        self.memo[key] = self.stack[-1]

    def pop(self) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.stack.pop()


def _key(value: Any) -> Any:
    """The key, or a text in its place if its hash could take long to compute or to compare.

    Python hashes nested tuples to any depth, and many large integers can have the same hash.
    """
    if isinstance(value, tuple):
        if len(value) > _LONGEST_KEY or any(isinstance(item, tuple) for item in value):
            return f"a tuple of {len(value)}"
        value = tuple(_key(item) for item in value)
    if isinstance(value, int) and value.bit_length() > 60:
        return f"an integer of {value.bit_length()} bits"
    hash(value)
    return value


def _dict_of(items: list[Any]) -> dict[Any, Any]:
    return {_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)}


_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    "BYTEARRAY8", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
}  # fmt: skip
"""Opcodes that push their argument."""

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
    "NEWOBJ": lambda m, _: m.new(*m.last(2)),
    "NEWOBJ_EX": lambda m, _: m.new(*m.last(3)),
    "BINPERSID": lambda m, _: PersistentId(m.last(1)[0]),
    "PERSID": lambda m, key: PersistentId(key),
}
"""Opcodes that push a value, computed from the machine and the opcode's argument."""

_ACTIONS: dict[str, Callable[[_Machine, Any], object]] = {
    "PROTO": lambda m, _: None,
    "FRAME": lambda m, _: None,
    "STOP": lambda m, _: None,
    "MARK": lambda m, _: m.marks.append(len(m.stack)),
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
"""Opcodes that push no value."""
