"""How a chat template uses message contents, read from its syntax tree.

The result holds for conversations without tools, whose messages have only a role and a content.
Code that can't run for them is ignored: the branch of `if tools`, and macros that only this branch
calls.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from jinja2 import TemplateSyntaxError, nodes

from sftctl.model.tokenizer.template_analysis import EMPTY, LETTER_CASES, Facts, key_of, parsed

_STRIPS = frozenset({"strip", "lstrip", "rstrip"})
_SEARCHES = frozenset({"split", "rsplit", "startswith", "endswith", "replace"})
_FILTERS = frozenset({"trim", "tojson", "string", "default", "d"})
_TESTS = frozenset(
    {"defined", "undefined", "none", "string", "mapping", "iterable", "sequence"}
    | {"boolean", "number", "true", "false"}
)
_FUNCTIONS = frozenset({"raise_exception", "namespace"})
_TRANSPARENT = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.Const, nodes.Name, nodes.NSRef),
    *(nodes.Assign, nodes.AssignBlock, nodes.Not, nodes.Neg, nodes.Pos, nodes.Add, nodes.Concat),
    *(nodes.Getattr, nodes.List, nodes.Tuple, nodes.Keyword, nodes.Slice),
    *(nodes.Break, nodes.Continue, nodes.Scope),
)


@dataclass(frozen=True, slots=True)
class ContentUse:
    """What a template does with contents, besides writing them and testing if they are empty."""

    constants: frozenset[str] = frozenset()
    """Constants that the template searches in contents, compares with contents, or splits contents
    by.
    """
    strips: bool = False
    """True: it may remove white space around contents or around parts of them."""


def content_use(template: str) -> ContentUse | None:
    """How a template uses contents; None if it may use them in an unknown way."""
    try:
        tree = parsed(template)
    except TemplateSyntaxError:
        return None
    reader = _Reader(Facts.of(tree))
    try:
        reader.read(tree)
    except _Unknown:
        return None
    return ContentUse(frozenset(reader.constants), reader.strips)


class _Unknown(Exception):
    """Raised if the template may use contents in an unknown way."""


@dataclass(slots=True)
class _Reader:
    facts: Facts
    constants: set[str] = field(default_factory=set)
    strips: bool = False
    _read_macros: set[str] = field(default_factory=set)
    _not_strings: list[nodes.Node] = field(default_factory=list)
    """Expressions that can't be strings at this place of the template, so they are not contents."""

    def read(self, node: nodes.Node) -> None:
        """Record how a node uses contents. _Unknown if it may use them in an unknown way."""
        own = _READERS.get(type(node))
        if own is not None:
            own(self, node)
        elif isinstance(node, _TRANSPARENT):
            self._read_all(node.iter_child_nodes())
        elif isinstance(node, nodes.BinExpr) and self.facts.is_structure(node):
            self._read_all([node.left, node.right])  # both sides are numbers
        else:
            raise _Unknown

    def _read_all(self, some: Iterable[nodes.Node | None]) -> None:
        for node in some:
            if node is not None:
                self.read(node)

    def _if(self, node: nodes.If) -> None:
        guards = len(self._not_strings)
        for branch in (node, *node.elif_):
            truth = self.facts.truth(branch.test)
            if truth is not False:
                self.read(branch.test)
                self._read_all(branch.body)
            if truth:
                break
            if isinstance(branch.test, nodes.Test) and branch.test.name == "string":
                self._not_strings.append(branch.test.node)
        else:
            self._read_all(node.else_)
        del self._not_strings[guards:]

    def _either(self, node: nodes.CondExpr) -> None:
        truth = self.facts.truth(node.test)
        self._read_all(
            [
                None if truth is False else node.test,
                None if truth is False else node.expr1,
                None if truth else node.expr2,
            ]
        )

    def _both(self, node: nodes.And | nodes.Or) -> None:
        ends = isinstance(node, nodes.Or)  # with this value on the left, the right is not evaluated
        truth = self.facts.truth(node.left)
        self._read_all([node.left, None if truth is ends else node.right])

    def _macro(self, node: nodes.Macro) -> None:
        """Nothing: a macro is read at its calls."""

    def _for(self, node: nodes.For) -> None:
        if self.facts.is_absent_field(node.iter):
            return
        if node.iter in self._not_strings and not self.facts.is_list(node.iter):
            return  # contents are strings here, and this loop runs only over other values
        if not self.facts.is_list(node.iter) or node.recursive:
            raise _Unknown
        self._read_all([node.test, *node.body, *node.else_])

    def _call(self, node: nodes.Call) -> None:
        called = node.node
        if isinstance(called, nodes.Name):
            self._read_all([*node.args, *node.kwargs])
            macro = self.facts.macros.get(called.name)
            if macro is None and called.name not in _FUNCTIONS:
                raise _Unknown
            if macro is not None:
                self._called(macro, node)
        elif isinstance(called, nodes.Getattr) and not node.kwargs and not node.dyn_args:
            self.read(called.node)
            self._method(called.attr, [_constant(argument) for argument in node.args])
        else:
            raise _Unknown

    def _called(self, macro: nodes.Macro, call: nodes.Call) -> None:
        """Read a macro at its call. _Unknown if one of its parameters is a list."""
        lists = any(self.facts.is_list(argument) for argument in call.args)
        if lists or EMPTY & {parameter.name for parameter in macro.args}:
            raise _Unknown
        if macro.name not in self._read_macros:
            self._read_macros.add(macro.name)
            self._read_all([*macro.defaults, *macro.body])

    def _method(self, name: str, arguments: list[object]) -> None:
        texts = [argument for argument in arguments if isinstance(argument, str)]
        if name in _STRIPS and len(arguments) == len(texts) < 2:
            self._strip(texts)
        elif name in _SEARCHES and texts and texts[0] and None not in arguments:
            self.constants.add(texts[0])
        elif name != "get" or len(arguments) != 1 or not texts:
            raise _Unknown

    def _strip(self, letters: list[str]) -> None:
        if not all(text.isspace() for text in letters):
            raise _Unknown
        self.strips = True

    def _compare(self, node: nodes.Compare) -> None:
        sides = [node.expr, *(operand.expr for operand in node.ops)]
        if all(self.facts.is_structure(side) for side in sides):
            self._read_all(sides)
            return
        if len(sides) != 2 or node.ops[0].op not in ("in", "notin", "eq", "ne"):
            raise _Unknown
        if node.ops[0].op in ("eq", "ne") and isinstance(sides[1], nodes.Const):
            sides.reverse()
        if not isinstance(sides[0], nodes.Const):
            raise _Unknown
        is_key = node.ops[0].op in ("in", "notin") and self.facts.is_message(sides[1])
        if isinstance(sides[0].value, str) and sides[0].value and not is_key:
            self.constants.add(sides[0].value)
        self.read(sides[1])

    def _filter(self, node: nodes.Filter) -> None:
        if node.name in ("length", "count"):
            if not self.facts.is_list(node.node):
                raise _Unknown
            return
        is_letter_case = node.name in LETTER_CASES and self.facts.is_structure(node.node)
        if (node.name not in _FILTERS and not is_letter_case) or node.node is None:
            raise _Unknown
        if node.name == "trim":
            letters = [_constant(argument) for argument in node.args]
            self._strip([str(letter) for letter in letters])
        self._read_all([node.node, *node.args, *node.kwargs])

    def _test(self, node: nodes.Test) -> None:
        if node.name not in _TESTS:
            raise _Unknown
        self.read(node.node)

    def _item(self, node: nodes.Getitem) -> None:
        of_split = isinstance(node.node, nodes.Call) and key_of(node.node.node) in (
            "split",
            "rsplit",
        )
        is_list = self.facts.is_list(node.node)
        is_name = isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str)
        is_number = isinstance(_constant(node.arg), int)
        if not (is_list or is_name or (of_split and is_number)):
            raise _Unknown
        self._read_all([node.node, node.arg])


_READERS: dict[type[nodes.Node], Callable[..., None]] = {
    nodes.If: _Reader._if,
    nodes.CondExpr: _Reader._either,
    nodes.And: _Reader._both,
    nodes.Or: _Reader._both,
    nodes.Macro: _Reader._macro,
    nodes.For: _Reader._for,
    nodes.Call: _Reader._call,
    nodes.Compare: _Reader._compare,
    nodes.Filter: _Reader._filter,
    nodes.Test: _Reader._test,
    nodes.Getitem: _Reader._item,
}


def _constant(node: nodes.Node) -> object:
    """The value of a constant, possibly with a minus sign; None for anything else."""
    if isinstance(node, nodes.Neg) and isinstance(node.node, nodes.Const):
        return -node.node.value if isinstance(node.node.value, int) else None
    return node.value if isinstance(node, nodes.Const) else None
