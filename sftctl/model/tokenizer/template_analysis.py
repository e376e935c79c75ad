"""Facts about a chat template, read from its syntax tree without rendering."""

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from jinja2 import Environment, TemplateSyntaxError, nodes

_GENERATION_TAG = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")

_ABSENT = frozenset({"tool_calls", "tool_call_id", "reasoning_content", "reasoning", "thinking"})
"""Fields that no message has here: the analysis assumes messages with only a role and a content."""

LETTER_CASES = frozenset({"lower", "upper", "capitalize", "title"})
EMPTY = frozenset({"tools", "documents"})
_GIVEN = frozenset(
    {"messages", "add_generation_prompt", "loop", "namespace", "strftime_now", "range"}
)
_NUMBERS = (
    *(nodes.Add, nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod, nodes.Pow),
    *(nodes.And, nodes.Or),
)


def parsed(template: str) -> nodes.Template:
    """The syntax tree of a chat template; TemplateSyntaxError if it can't be parsed."""
    environment = Environment(extensions=["jinja2.ext.loopcontrols"])
    try:
        return environment.parse(_GENERATION_TAG.sub("", template))
    except (ValueError, RecursionError, MemoryError) as problem:  # a huge number, or deep nesting
        raise TemplateSyntaxError(str(problem), 1) from problem


def key_of(node: nodes.Node | None) -> object:
    """The key of an access: `x` for `m.x` and for `m['x']`; None for other expressions."""
    if isinstance(node, nodes.Getattr):
        return node.attr
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
        return node.arg.value
    return None


@dataclass(frozen=True, slots=True)
class Facts:
    """The assignments, loops and macros of a template, for a conversation without tools."""

    macros: dict[str, nodes.Macro]
    values: dict[str, list[nodes.Node]]  # name or `namespace.name` -> the values assigned to it
    loops: dict[str, list[nodes.Node]]  # loop variable -> the lists that it runs over
    bound: frozenset[str]  # names that get a value in another way, such as a macro's parameter
    lists: frozenset[str]  # names of the list of messages, or of a slice of this list
    structures: frozenset[str]  # names that hold only roles, numbers or constants

    @classmethod
    def of(cls, tree: nodes.Template) -> "Facts":
        """Collect the facts of a syntax tree."""
        values: dict[str, list[nodes.Node]] = defaultdict(list)
        loops: dict[str, list[nodes.Node]] = defaultdict(list)
        bound = {n.name for n in tree.find_all(nodes.Name) if n.ctx == "param"} - EMPTY
        for assign in tree.find_all(nodes.Assign):
            _assign(assign.target, assign.node, values, bound)
        for block in tree.find_all(nodes.AssignBlock):
            bound |= {n.name for n in block.target.find_all(nodes.Name)} | _names(block.target)
        for loop in tree.find_all(nodes.For):
            if isinstance(loop.target, nodes.Name):
                loops[loop.target.name].append(loop.iter)
            else:
                bound |= _names(loop.target)
        macros = {macro.name: macro for macro in tree.find_all(nodes.Macro)}
        other = bound | loops.keys()
        lists = _largest({"messages", "tools", *values} - other, values, _is_list)
        structures = _largest({"add_generation_prompt", *values} - other, values, _is_structure)
        return cls(macros, dict(values), dict(loops), frozenset(bound), lists, structures)

    def is_list(self, node: nodes.Node | None) -> bool:
        """Whether a node is the list of messages, the list of tools, or a slice of one of them."""
        return _is_list(node, self.lists)

    def is_structure(self, node: nodes.Node | None) -> bool:
        """Whether a node is made only of roles, numbers, positions and constants. Contents are
        excluded.
        """
        return _is_structure(node, self.structures)

    def truth(self, node: nodes.Node | None) -> bool | None:
        """The truth of an expression, if it is the same for every conversation without tools; else
        None.
        """
        if isinstance(node, nodes.Const):
            return bool(node.value)
        if isinstance(node, nodes.Not):
            inner = self.truth(node.node)
            return None if inner is None else not inner
        if isinstance(node, (nodes.And, nodes.Or)):
            ends = isinstance(node, nodes.Or)
            sides = [self.truth(node.left), self.truth(node.right)]
            return ends if ends in sides else None if None in sides else not ends
        if isinstance(node, nodes.Test):
            return self._test(node)
        if isinstance(node, nodes.Compare):
            return False if self._is_absent_key(node) else None
        return False if self._is_absent(node) or self._is_null(node) else None

    def _test(self, node: nodes.Test) -> bool | None:
        if node.name in ("defined", "undefined") and self._is_absent(node.node):
            return node.name == "undefined"
        if node.name in ("string", "none", "mapping", "true") and self._is_absent(node.node):
            return False
        if node.name == "none" and self._is_null(node.node):
            return True
        return None

    def _is_absent(self, node: nodes.Node | None) -> bool:
        """Whether a node is an undefined name, or a field that no message has."""
        if isinstance(node, nodes.Name):
            known = node.name in _GIVEN | EMPTY or node.name.endswith("_token")
            return not known and not self._is_set(node.name) and node.name not in self.macros
        return self.is_absent_field(node)

    def is_absent_field(self, node: nodes.Node | None) -> bool:
        """Whether a node is a field that no message has, such as `m.tool_calls`.

        False if `m` is a namespace and the template sets this field.
        """
        owner = getattr(node, "node", None)
        name = owner.name if isinstance(owner, nodes.Name) else None
        key = key_of(node)
        return key in _ABSENT and f"{name}.{key}" not in self.values

    def _is_null(self, node: nodes.Node | None) -> bool:
        """Whether a node is a name whose value is always none."""
        if not isinstance(node, nodes.Name) or node.name not in EMPTY:
            return False
        if node.name in self.bound or node.name in self.loops:
            return False
        return all(
            _is_none(value) or self._is_absent(value) for value in self.values.get(node.name, ())
        )

    def _is_absent_key(self, node: nodes.Compare) -> bool:
        """Whether a node is `'tool_calls' in message`, or the same with another absent field."""
        [key, holder, *more] = [node.expr, *(operand.expr for operand in node.ops)]
        is_in = node.ops[0].op == "in" and not more
        return (
            is_in
            and isinstance(key, nodes.Const)
            and key.value in _ABSENT
            and self.is_message(holder)
        )

    def is_message(self, node: nodes.Node | None) -> bool:
        """Whether a node is a loop variable that only runs over messages."""
        if not isinstance(node, nodes.Name) or self.bound & {node.name} or node.name in self.values:
            return False
        loops = self.loops.get(node.name, [])
        return bool(loops) and all(self.is_list(iterated) for iterated in loops)

    def _is_set(self, name: str) -> bool:
        return name in self.values or name in self.bound or name in self.loops


def _is_structure(node: nodes.Node | None, known: frozenset[str]) -> bool:
    match node:
        case nodes.Const() | nodes.Compare() | nodes.Test() | nodes.Filter(name="length" | "count"):
            return True
        case nodes.Filter(name=name) if name in LETTER_CASES:
            return _is_structure(node.node, known)
        case nodes.Name():
            return node.name in known
        case nodes.Getattr() | nodes.Getitem():
            owner = node.node.name if isinstance(node.node, nodes.Name) else None
            key = key_of(node)
            return owner == "loop" or key == "role" or f"{owner}.{key}" in known
        case nodes.UnaryExpr():
            return _is_structure(node.node, known)
        case nodes.List() | nodes.Tuple():
            return all(_is_structure(item, known) for item in node.items)
        case nodes.BinExpr(left=left, right=right) if isinstance(node, _NUMBERS):
            return _is_structure(left, known) and _is_structure(right, known)
    return False


def _is_list(node: nodes.Node | None, known: frozenset[str]) -> bool:
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
        node = node.node
    return isinstance(node, nodes.Name) and node.name in known


def _largest(
    names: set[str],
    values: dict[str, list[nodes.Node]],
    holds: Callable[[nodes.Node, frozenset[str]], bool],
) -> frozenset[str]:
    """The largest set of names whose values all satisfy `holds`.

    A value may refer to other names of the set.
    """
    while True:
        known = frozenset(names)
        names = {name for name in known if all(holds(v, known) for v in values.get(name, ()))}
        if names == known:
            return known


def _assign(
    target: nodes.Node,
    value: nodes.Node,
    values: dict[str, list[nodes.Node]],
    bound: set[str],
) -> None:
    if isinstance(target, nodes.NSRef):
        values[f"{target.name}.{target.attr}"].append(value)
    elif isinstance(target, nodes.Name):
        values[target.name].append(value)
        if isinstance(value, nodes.Call) and key_of(value.node) == "namespace":
            for keyword in value.kwargs:
                values[f"{target.name}.{keyword.key}"].append(keyword.value)
    else:
        bound |= _names(target)


def _names(target: nodes.Node) -> set[str]:
    own = {target.name} if isinstance(target, nodes.Name) else set()
    return own | {name.name for name in target.find_all(nodes.Name)}


def _is_none(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Const) and node.value is None
