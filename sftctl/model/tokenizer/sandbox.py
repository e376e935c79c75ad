"""Compile a chat template once, in an environment like that of transformers, and cache it.

transformers copies all data and reads each value in Jinja's slowest way. Here the usual values (a
field of a message, a method of a string, `loop.index0`) are read in a faster way, with the same
results. As with transformers, a template can't access files or the internals of Python.
"""

import json
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from types import BuiltinMethodType
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

_OF_DICTS = frozenset(dir(dict))
_SAFE: dict[type, frozenset[str]] = {
    str: frozenset(name for name in dir(str) if name[0] != "_" and "format" not in name),
    LoopContext: frozenset({"first", "last", "index", "index0", "revindex", "revindex0", "length"}),
}
"""For each type, the attributes that templates may read without further checks."""

_CHANCE = frozenset({"random", "lipsum"})
"""The names of Jinja's filter and function that draw random numbers."""

_PLAIN = frozenset({bool, int, float, str})


@lru_cache(maxsize=64)
def compiled(template: str) -> jinja2.Template:
    """The compiled template. Raises jinja2's exceptions if it can't be compiled."""
    environment = _environment()
    if any(name in template for name in _CHANCE):
        _refuse_chance(environment.parse(template))
    return environment.from_string(template)


def _refuse_chance(tree: nodes.Template) -> None:
    """TemplateSyntaxError if a template draws random numbers: each row must have one text."""
    found = [(n.name, n.lineno) for n in tree.find_all(nodes.Filter) if n.name == "random"]
    found += [(n.name, n.lineno) for n in tree.find_all(nodes.Name) if n.name == "lipsum"]
    for name, line in found:
        problem = f"{name!r} writes another text each time, and a row must have one"
        raise jinja2.TemplateSyntaxError(problem, line)


class _Sandbox(ImmutableSandboxedEnvironment):
    def getattr(self, obj: Any, attribute: str) -> Any:
        """`obj.attribute` as in Jinja: the attribute if templates may read it, else the item."""
        kind = type(obj)
        if kind is dict and attribute not in _OF_DICTS:
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        if attribute in _SAFE.get(kind, ()):
            return getattr(obj, attribute)
        if kind is _Namespace and not attribute.startswith("_"):
            value = getattr(obj, attribute, None)
            if type(value) in _PLAIN:
                return value
        return super().getattr(obj, attribute)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a function if templates may call it; else SecurityError."""
        if type(__obj) is BuiltinMethodType and type(__obj.__self__) is str:
            kwargs.pop("_block_vars", None)
            kwargs.pop("_loop_vars", None)
            return __obj(*args, **kwargs)
        return super().call(__context, __obj, *args, **kwargs)


class _Namespace(Namespace):
    """A namespace without private names, by which a template could reach Python's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, args = args[0], args[1:]
        names = dict(*args, **kwargs)
        for name in names:
            _refuse_private(name)
        Namespace.__init__(self, names)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace can't have a private name: {name!r}")


class _GenerationTag(Extension):
    """The tag `{% generation %}` marks text of the model. Here it has no effect."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.CallBlock:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_text"), [], [], body, lineno=line)

    def _text(self, caller: Macro) -> str:
        return caller()


class _Dict:
    """The function `dict` for templates. The attributes of Python's `dict` can't be reached from
    it.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


def _environment() -> _Sandbox:
    environment = _Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    functions: dict[str, Callable[..., Any]] = {
        "raise_exception": _raise,
        "strftime_now": _now,
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    environment.globals.update(functions)
    return environment


def _raise(message: str) -> NoReturn:
    raise jinja2.exceptions.TemplateError(message)


def _now(format: str) -> str:
    return datetime.now().strftime(format)


def _to_json(
    x: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
