"""Compile and render the chat templates of a tokenizer, within limits of time and memory."""

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from time import thread_time
from typing import TYPE_CHECKING, Any

from sftctl.errors import ConfigError
from sftctl.jsonio import dump_canonical
from sftctl.model.tokenizer.sandbox import compiled
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

Messages = list[dict[str, Any]]

_SLOW_S = 0.05
"""A rendering that takes more processor time than this is not compared."""

DEFAULT = "default"
"""The chat template for rows without tools, and for all rows if there is no `tool_use`."""

TOOL_USE = "tool_use"
"""The chat template for rows with tools."""


def templates_of(hf: "PreTrainedTokenizerFast") -> dict[str, str]:
    """The chat templates by name. A template without a name is the default; {} if there is none."""
    given = hf.chat_template
    if isinstance(given, dict):
        return {str(name): str(template) for name, template in given.items()}
    return {DEFAULT: given} if given else {}


def without_mark(templates: Any) -> Any:
    """A template, or several by name, without a byte order mark at its start."""
    if isinstance(templates, dict):
        return {name: without_mark(template) for name, template in templates.items()}
    return templates.removeprefix("\ufeff") if isinstance(templates, str) else templates


def template_for(tools: list[Any] | None, templates: dict[str, str]) -> str | None:
    """The template for a row with these tools; None if there is no template."""
    return templates.get(TOOL_USE if tools and TOOL_USE in templates else DEFAULT)


def hash_templates(templates: dict[str, str]) -> str:
    """A hash of a single template's text, or of several templates as JSON."""
    if templates.keys() <= {DEFAULT}:
        return hashlib.sha256(templates.get(DEFAULT, "").encode()).hexdigest()
    return hashlib.sha256(dump_canonical(templates)).hexdigest()


def require_default(name: str, templates: dict[str, str]) -> None:
    """ConfigError if tokenizer `name` has no default template."""
    if DEFAULT not in templates:
        raise ConfigError(
            f"tokenizer {name}: has chat templates named {', '.join(sorted(templates))}, but none "
            f"named {DEFAULT}",
            hint="save the one to use as a file, and name it with --chat-template FILE",
        )


def compile_all(templates: Iterable[str], limits: TemplateLimits) -> None:
    """Compile templates now, so that the first rendering does not have to. The results are cached.

    ConfigError if one can't be compiled, or if compiling takes too long.
    """
    try:
        limits.begin()
        try:
            for template in templates:
                compiled(template)
        finally:
            limits.end()
    except OutOfTime:
        raise hung_in_compilation(limits.seconds) from None
    except Exception as problem:  # also Python's SyntaxError, RecursionError, MemoryError
        raise broken_template(problem) from problem


@dataclass(slots=True)
class _Proof:
    """Whether our renderings of a template were equal to those of transformers so far."""

    to_compare: int = 16  # how many renderings are still to be compared
    has_failed: bool = False


@dataclass(frozen=True, slots=True)
class Renderings:
    """Renders conversations with the chat templates of a tokenizer.

    The first renderings of each template are compared with those of transformers. (Slow ones are
    not.) After a difference, transformers renders this template.
    """

    hf: "PreTrainedTokenizerFast"
    limits: TemplateLimits
    special_tokens: dict[str, str]  # variables for the templates, such as `bos_token`
    _proofs: dict[str, _Proof] = field(default_factory=dict)

    def rendered(
        self,
        template: str | None,
        messages: list[dict[str, Any]],
        tools: list[Any] | None,
        add_generation_prompt: bool,
    ) -> str:
        """The text of a conversation.

        DataError if the template refuses the messages, or uses more than `limits` allow.
        ConfigError if the template itself is broken.
        """
        try:
            self.limits.begin()
            try:
                text = self._text(template, messages, tools or None, add_generation_prompt)
            finally:
                self.limits.end()
        except OutOfTime as problem:
            raise ran_out(problem, self.limits.seconds) from None
        except Exception as problem:  # a template can raise anything
            raise refusal(problem) from problem
        if len(text) > TEXT_CHARS:
            raise too_long(len(text), TEXT_CHARS)
        return text

    def _text(
        self, template: str | None, messages: Messages, tools: list[Any] | None, prompt: bool
    ) -> str:
        proof = _Proof(has_failed=True)
        if template is not None and messages:
            proof = self._proofs.setdefault(template, _Proof())
        if template is None or proof.has_failed:
            return self._by_transformers(template, messages, tools, prompt)
        if not proof.to_compare:
            return self._by_us(template, messages, tools, prompt)
        proof.to_compare -= 1
        ours, started = None, thread_time()
        with suppress(Exception):  # if ours fails, transformers raises its own error below
            ours = self._by_us(template, messages, tools, prompt)
        if ours is not None and thread_time() - started > _SLOW_S:
            return ours  # a second rendering could exceed the time limit
        theirs = self._by_transformers(template, messages, tools, prompt)
        proof.has_failed = theirs != ours
        return theirs

    def _by_us(
        self, template: str, messages: Messages, tools: list[Any] | None, prompt: bool
    ) -> str:
        return compiled(template).render(
            **self.special_tokens,
            messages=[_as_template_sees(message) for message in messages],
            tools=tools,
            documents=None,
            add_generation_prompt=prompt,
        )

    def _by_transformers(
        self, template: str | None, messages: Messages, tools: list[Any] | None, prompt: bool
    ) -> str:
        text: str = self.hf.apply_chat_template(
            messages,
            tools=tools,
            chat_template=template,
            add_generation_prompt=prompt,
            tokenize=False,
        )
        return text


_REASONING = ("reasoning_content", "thinking", "reasoning")
"""A message's reasoning may have any of these names."""


def _as_template_sees(message: dict[str, Any]) -> dict[str, Any]:
    """The message without None values. Its reasoning gets every name that templates use for it."""
    if None in message.values():
        message = {key: value for key, value in message.items() if value is not None}
    given = [message[name] for name in _REASONING if name in message]
    if given:
        message = {"thinking": given[0], **message, "reasoning_content": given[0]}
    return message
