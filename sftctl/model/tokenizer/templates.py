"""The chat templates of a tokenizer, by name: compiled and rendered within limits."""

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from sftctl.errors import ConfigError
from sftctl.jsonio import dump_canonical
from sftctl.model.tokenizer.template_errors import (
    broken_template,
    hung_in_compilation,
    ran_out,
    refusal,
    too_long,
)
from sftctl.model.tokenizer.template_limits import TEXT_CHARS, OutOfTime, TemplateLimits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

DEFAULT = "default"
"""The chat template for rows without tools, and for all rows if there is no `tool_use`."""

TOOL_USE = "tool_use"
"""The chat template for rows with tools."""


def templates_of(hf: "PreTrainedTokenizerFast") -> dict[str, str]:
    """The chat templates by name; one without a name is the default one. Empty if it has none."""
    given = hf.chat_template
    if isinstance(given, dict):
        return {str(name): str(template) for name, template in given.items()}
    return {DEFAULT: given} if given else {}


def without_mark(templates: Any) -> Any:
    """A template, or several by name, without the byte order mark of its file."""
    if isinstance(templates, dict):
        return {name: without_mark(template) for name, template in templates.items()}
    return templates.removeprefix("\ufeff") if isinstance(templates, str) else templates


def template_for(tools: list[Any] | None, templates: dict[str, str]) -> str | None:
    """The template for a row with these tools; None if there is no template."""
    return templates.get(TOOL_USE if tools and TOOL_USE in templates else DEFAULT)


def hash_templates(templates: dict[str, str]) -> str:
    """A hash of one template as text, or of several as JSON."""
    if templates.keys() <= {DEFAULT}:
        return hashlib.sha256(templates.get(DEFAULT, "").encode()).hexdigest()
    return hashlib.sha256(dump_canonical(templates)).hexdigest()


def require_default(name: str, templates: dict[str, str]) -> None:
    """ConfigError if none of the templates of tokenizer `name` is the default one."""
    if DEFAULT not in templates:
        raise ConfigError(
            f"tokenizer {name}: has chat templates named {', '.join(sorted(templates))}, but none "
            f"named {DEFAULT}",
            hint="save the one to use as a file, and name it with --chat-template FILE",
        )


def compile_all(templates: Iterable[str], limits: TemplateLimits) -> None:
    """Compile templates now instead of in their first rendering; transformers keeps the result.

    ConfigError if one can't be compiled, or takes too long.
    """
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        limits.begin()
        try:
            for template in templates:
                _compile_jinja_template(template)
        finally:
            limits.end()
    except OutOfTime:
        raise hung_in_compilation(limits.seconds) from None
    except Exception as problem:  # also Python's SyntaxError, RecursionError, MemoryError
        raise broken_template(problem) from problem


def rendered(
    hf: "PreTrainedTokenizerFast",
    template: str | None,
    limits: TemplateLimits,
    messages: list[dict[str, Any]],
    tools: list[Any] | None,
    add_generation_prompt: bool,
) -> str:
    """The text of a conversation, by a chat template of the tokenizer.

    DataError if the template refuses the messages, or uses more than `limits` allow. ConfigError
    if the template itself is broken.
    """
    try:
        limits.begin()
        try:
            text: str = hf.apply_chat_template(
                messages,
                tools=tools or None,
                chat_template=template,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
            )
        finally:
            limits.end()
    except OutOfTime as problem:
        raise ran_out(problem, limits.seconds) from None
    except Exception as problem:  # a template can raise anything
        raise refusal(problem) from problem
    if len(text) > TEXT_CHARS:
        raise too_long(len(text), TEXT_CHARS)
    return text
