"""Options of a chat template, such as `enable_thinking`, written into the template as defaults.

So every program that renders with the saved tokenizer uses them: training, chat, and other tools
that read an exported model. A program can still set an option to another value.
"""

import json
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from jinja2 import TemplateSyntaxError, meta, nodes
from jinja2.visitor import NodeTransformer

from sftctl.config.template_options import GIVEN
from sftctl.errors import ConfigError
from sftctl.model.tokenizer.template_analysis import parsed

_A_CONSTANT = "a constant"


def with_all_options(
    templates: str | dict[str, str] | None, options: Mapping[str, Any]
) -> str | dict[str, str] | None:
    """The template, or each of several templates by name, with defaults for its options."""
    if isinstance(templates, dict):
        return {name: with_options(template, options) for name, template in templates.items()}
    return with_options(templates, options) if templates else templates


def with_options(template: str, options: Mapping[str, Any]) -> str:
    """The template with defaults for its options.

    ConfigError for an option that it does not read.
    """
    if not options:
        return template
    known = options_of(template)
    for name in options:
        if known is not None and name not in known:
            near = get_close_matches(name, known, n=1)
            raise ConfigError(
                f"data.template_options: the chat template does not read {name!r}",
                hint=f"did you mean {near[0]}?"
                if near
                else f"it reads: {', '.join(known) or 'no option'}",
            )
    defaults = "".join(
        f"{{% if {name} is not defined %}}{{% set {name} = {_literal(value)} %}}{{% endif %}}"
        for name, value in sorted(options.items())
    )
    # Without the empty output, Jinja would remove a line break at the start of the template.
    return defaults + "{{ '' }}" + template


def options_of(template: str) -> list[str] | None:
    """The variables that a template reads and that renderers do not set.

    None if the template is not valid.
    """
    try:
        tree = parsed(template)
        names = {node.name for node in tree.find_all(nodes.Name) if node.ctx == "load"}
        names &= _set_if_undefined(tree)
        _WithoutConstants().visit(tree)
        read = meta.find_undeclared_variables(tree) - {_A_CONSTANT} | names
    except (TemplateSyntaxError, RecursionError):
        return None
    return sorted(name for name in read - GIVEN if not name.endswith("_token"))


class _WithoutConstants(NodeTransformer):
    """Replaces constants by a variable, because Jinja computes expressions of constants.

    Such an expression may take hours, for example `9 ** 9 ** 9`.
    """

    def visit_Const(self, node: nodes.Const) -> nodes.Name:
        """The variable in place of a constant."""
        return nodes.Name(_A_CONSTANT, "load", lineno=node.lineno, environment=node.environment)


def _set_if_undefined(tree: nodes.Template) -> set[str]:
    """Variables that get a default in the template: `{% if x is not defined %}{% set x = … %}`."""
    tests = (t for t in tree.find_all(nodes.Test) if t.name in ("defined", "undefined"))
    return {test.node.name for test in tests if isinstance(test.node, nodes.Name)}


def _literal(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
