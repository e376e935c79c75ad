"""Proves from a chat template's syntax tree that it does not look at message contents."""

import re

from jinja2 import Environment, TemplateSyntaxError, nodes

_GENERATION_TAG = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")
_LISTS = frozenset({"messages", "loop_messages", "tools"})
_FILTERS = ("trim", "tojson")
_TESTS = frozenset({"defined", "undefined", "none", "string", "mapping", "iterable", "sequence"})
_OPAQUE = (
    *(nodes.Macro, nodes.CallBlock, nodes.FilterBlock, nodes.Include),
    *(nodes.Import, nodes.FromImport, nodes.Extends),
)
_CALLS = frozenset({"raise_exception", "namespace"})


def parsed(template: str) -> nodes.Template:
    """The syntax tree of a chat template; TemplateSyntaxError if it has none."""
    environment = Environment(extensions=["jinja2.ext.loopcontrols"])
    try:
        return environment.parse(_GENERATION_TAG.sub("", template))
    except (ValueError, RecursionError, MemoryError) as problem:  # a huge number, or deep nesting
        raise TemplateSyntaxError(str(problem), 1) from problem


def is_content_blind(template: str) -> bool:
    """True: the text that the template writes around contents depends on roles alone.

    The template only writes contents, trims them, or tests whether they are empty. False means
    that this could not be proved.
    """
    try:
        tree = parsed(template)
    except TemplateSyntaxError:
        return False
    return all(_is_blind(node) for node in tree.find_all(nodes.Node))


def _is_blind(node: nodes.Node) -> bool:
    match node:
        case nodes.Compare():
            return all(_is_structure(side) for side in (node.expr, *(o.expr for o in node.ops)))
        case nodes.Filter():
            is_list = _is_list(node.node)
            return is_list if node.name == "length" else node.name in _FILTERS and not node.args
        case nodes.Test():
            return node.name in _TESTS
        case nodes.Call():
            return isinstance(node.node, nodes.Name) and node.node.name in _CALLS
        case nodes.Getitem(arg=nodes.Const(value=str())):
            return True
        case nodes.Getitem():
            return _is_list(node.node)
        case nodes.For():
            return _is_list(node.iter) or _key(node.iter) == "tool_calls"
    return not isinstance(node, _OPAQUE)


def _is_structure(node: nodes.Node | None) -> bool:
    """True: an expression of roles, numbers and positions, without any message content."""
    match node:
        case nodes.Const() | nodes.Compare():
            return True
        case nodes.Getattr() | nodes.Getitem():
            of_loop = isinstance(node.node, nodes.Name) and node.node.name == "loop"
            return of_loop or _key(node) == "role"
        case nodes.BinExpr():
            return _is_structure(node.left) and _is_structure(node.right)
        case nodes.UnaryExpr():
            return _is_structure(node.node)
        case nodes.Filter(name="length"):
            return True
    return False


def _is_list(node: nodes.Node | None) -> bool:
    """True: the messages, the tools, or a slice of either."""
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
        node = node.node
    return isinstance(node, nodes.Name) and node.name in _LISTS


def _key(node: nodes.Node) -> object:
    """`x` for `m.x` and for `m['x']`."""
    if isinstance(node, nodes.Getattr):
        return node.attr
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
        return node.arg.value
    return None
