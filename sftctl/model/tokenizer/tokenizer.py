"""ChatTokenizer: a transformers fast tokenizer and its chat template."""

import copy
from collections.abc import Callable, Mapping, Sequence
from datetime import date as Date
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sftctl.disk import system_errors
from sftctl.errors import ConfigError, EngineDiffers
from sftctl.model.folder.load_errors import from_hub_or_disk
from sftctl.model.folder.tokenizer_files import check_loaded
from sftctl.model.gguf.file import metadata_of, require_whole_model
from sftctl.model.source import (
    ModelSource,
    on_stderr,
    quiet,
    require_tokenizer_folder,
    tell_of_code,
    tokenizer_class,
)
from sftctl.model.tokenizer.chat_templates import CHATML, named_template
from sftctl.model.tokenizer.clock import with_frozen_clock
from sftctl.model.tokenizer.content_use import ContentUse, content_use
from sftctl.model.tokenizer.encoders import (
    Checked,
    Encoder,
    Ids,
    Reference,
    Span,
    Splintr,
    content_hash,
    fast_engine,
    special_ids,
)
from sftctl.model.tokenizer.gguf_split import fix_split
from sftctl.model.tokenizer.library_warnings import library_warnings
from sftctl.model.tokenizer.new_tokens import add_new_tokens
from sftctl.model.tokenizer.template_errors import half_character
from sftctl.model.tokenizer.template_limits import LARGE_TEXT, TemplateLimits
from sftctl.model.tokenizer.template_options import with_all_options
from sftctl.model.tokenizer.templates import (
    DEFAULT,
    Renderings,
    compile_all,
    hash_templates,
    require_default,
    template_for,
    templates_of,
    without_mark,
)
from sftctl.model.tokenizer.token_bytes import TokenBytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Engine = Literal["auto", "hf"]

_TEXT_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<｜end▁of▁sentence｜>")
"""Tokens that end a text in pretraining. A chat model often has another EOS token."""


class ChatTokenizer:
    """Renders conversations with the chat template, and encodes text without adding tokens."""

    def __init__(self, hf: "PreTrainedTokenizerFast", name: str) -> None:
        hf.chat_template = without_mark(hf.chat_template)
        self.hf = hf
        self.name = name
        self.date: Date | None = None
        self.vocab_size = len(hf)
        self.bos_id: int | None = hf.bos_token_id
        self.templates = templates_of(hf)
        self.limits = TemplateLimits()
        self._renderings = Renderings(hf, self.limits, hf.special_tokens_map)
        self._is_compiled = False
        self.content_use: ContentUse | None = content_use(self.templates.get(DEFAULT, ""))
        """How the template uses contents; None if this is unknown or was found to be wrong."""
        self._reference = Reference(hf)
        self._encoder: Encoder = self._reference
        self.engine_reason = "no other was requested"
        self.special_ids = special_ids(hf)
        self.special_texts = tuple(hf.convert_ids_to_tokens(sorted(self.special_ids)))
        self.eos_text: str = hf.eos_token or ""
        self.complete_roles: set[object] = set()
        """The template writes all contents of a conversation with these roles, as far as it is
        known.
        """
        self.content_hash = content_hash(hf)
        self.template_hash = hash_templates(self.templates)

    def render(
        self,
        messages: list[dict[str, Any]],
        tools: list[Any] | None = None,
        add_generation_prompt: bool = False,
    ) -> str:
        """The text that the model sees.

        DataError if the template refuses the messages, or uses more than `limits` allow.
        ConfigError if the template itself is broken.
        """
        template = template_for(tools, self.templates)
        return self._renderings.rendered(template, messages, tools, add_generation_prompt)

    def compile_templates(self) -> None:
        """Compile the chat template now, so that the first rendering does not have to.

        ConfigError if it can't be compiled, or if compiling takes too long.
        """
        if not self._is_compiled:
            compile_all(self.templates.values(), self.limits)
        self._is_compiled = True

    def with_date(self, day: str | None) -> "ChatTokenizer":
        """A copy whose template always writes the date `day` (YYYY-MM-DD), or else the date of
        today.

        Returns the tokenizer itself if its template has no clock, or if `day` is None and the date
        is set already.
        """
        if self.date is not None and day is None:
            return self
        date = Date.today() if day is None else Date.fromisoformat(day)
        own = templates_of(self.hf)
        dated = {name: with_frozen_clock(template, date) for name, template in own.items()}
        if dated == own:
            return self
        use = content_use(dated.get(DEFAULT, ""))
        return self._with(date=date, templates=dated, _is_compiled=False, content_use=use)

    def with_options(self, options: dict[str, Any]) -> "ChatTokenizer":
        """A copy with these template options. ConfigError if a template does not use an option."""
        return self._with(templates=with_all_options(self.templates, options))

    def without_content_use(self) -> "ChatTokenizer":
        """A copy without `content_use`. Turns are then found by rendering every prefix of a
        conversation.
        """
        return self._with(content_use=None)

    def _with(self, **changes: Any) -> "ChatTokenizer":
        other = copy.copy(self)
        vars(other).update(changes)
        return other

    @property
    def text_start(self) -> str:
        """The BOS token as text, if the tokenizer puts it at the start of a text; else ""."""
        ids = self.hf.backend_tokenizer.encode("a", add_special_tokens=True).ids
        return str(self.hf.bos_token) if ids[:1] == [self.bos_id] else ""

    @property
    def text_end(self) -> str:
        """The token that ends a text (not a turn), as text; "" if there is none."""
        ends = [token for token in _TEXT_ENDS if token in self.special_texts]
        eos = self.hf.eos_token
        return str(eos) if eos in ends or (eos and not ends) else (ends[0] if ends else "")

    @property
    def engine(self) -> str:
        """Name and version of the library that encodes text."""
        return self._encoder.name

    @cached_property
    def token_bytes(self) -> TokenBytes | None:
        """The bytes of each token; None if `TokenBytes.of` refuses the vocabulary."""
        return TokenBytes.of(self.hf)

    @property
    def is_fast(self) -> bool:
        """Whether `encode` uses the fast engine."""
        return self._encoder.is_fast

    @property
    def is_checked(self) -> bool:
        """Whether `encode` compares all ids with the reference's."""
        return isinstance(self._encoder, Checked)

    def encode(self, text: str) -> Ids:
        """Token ids (T,), without BOS. TemplateFailed if the text has half of a surrogate pair."""
        try:
            if len(text) <= LARGE_TEXT:
                return self._encoder.encode(text)
            with self.limits.lifted():
                return self._encoder.encode(text)
        except (TypeError, UnicodeError) as problem:
            raise half_character(text) or problem from problem

    def encode_with_offsets(self, text: str) -> tuple[Ids, list[Span]]:
        """Token ids of the reference, without BOS, and each token's (start, end) in characters."""
        with self.limits.lifted():
            try:
                return self._reference.encode_with_offsets(text)
            except (TypeError, UnicodeError) as problem:
                raise half_character(text) or problem from problem

    def with_engine(self, engine: Engine) -> "ChatTokenizer":
        """A copy with the fast engine if it passes the probes (auto), or with the
        reference (hf).
        """
        if engine == "hf":
            return self.by_reference("requested with --engine hf")
        try:
            return self.fast()
        except EngineDiffers as problem:
            return self.by_reference(problem.message)

    def fast(self) -> "ChatTokenizer":
        """A copy with the fast engine; EngineDiffers if its ids differ for a probe."""
        return self.with_encoder(fast_engine(self.hf), "proved equal to the reference on probes")

    def checked(self) -> "ChatTokenizer":
        """A copy whose `encode` compares all ids with the reference's, and raises EngineDiffers."""
        fast = self._encoder
        if not isinstance(fast, Splintr):
            return self
        return self.with_encoder(Checked(fast, self._reference), self.engine_reason)

    def by_reference(self, why: str) -> "ChatTokenizer":
        """A copy with the reference encoder. `why` is the reason for it, shown to the user."""
        return self.with_encoder(self._reference, why)

    def with_encoder(self, encoder: Encoder, why: str) -> "ChatTokenizer":
        """A copy that encodes with `encoder`."""
        return self._with(_encoder=encoder, engine_reason=why)

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> str:
        """The text of token ids."""
        text: str = self.hf.decode(
            token_ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        return text

    def save(self, folder: Path) -> None:
        """Write the Hugging Face files, with the template."""
        with system_errors():
            self.hf.save_pretrained(folder)


def load_tokenizer(
    name: str,
    chat_template: Path | str | None = None,
    template_options: Mapping[str, Any] | None = None,
    *,
    template_required: bool = True,
    new_tokens: Sequence[str] | None = None,
    warn: Callable[[str], None] = on_stderr,
) -> ChatTokenizer:
    """Load the tokenizer of a directory, a hub name or a .gguf file, and add `new_tokens`.

    `chat_template` names a Jinja file, or is `chatml`. `template_options` become defaults of the
    template. ConfigError if there is no fast tokenizer, if a required template is missing, if the
    template does not read an option, or if a new token exists already.
    """
    quiet()
    source = ModelSource.of(name)
    require_tokenizer_folder(name)
    if source.is_minimind:
        raise ConfigError(
            f"{name}: holds weights only, no tokenizer",
            hint="give --tokenizer DIR (MiniMind's model/ folder), or a prepared store",
        )
    if source.is_gguf:
        require_whole_model(source.gguf_path)
    with from_hub_or_disk(f"tokenizer {name}", source), library_warnings(f"tokenizer {name}", warn):
        hf = tokenizer_class(source).from_pretrained(source.location, **source.arguments)
    tell_of_code(source, warn)
    hf.init_kwargs.pop("auto_map", None)  # a saved tokenizer with it would ask for code
    if source.is_gguf and (problem := fix_split(hf, metadata_of(source.gguf_path))) is not None:
        warn(f"{source.gguf_path}: {problem}")
    check_loaded(hf, name, Path(source.location), warn)
    add_new_tokens(hf, name, new_tokens or ())
    if chat_template is not None:
        hf.chat_template = named_template(str(chat_template), hf)
    templates = templates_of(hf)
    if template_required and templates:
        require_default(name, templates)
    if template_required and not templates:
        raise ConfigError(
            f"tokenizer {name}: has no chat template",
            hint=f"give one: --chat-template FILE, or --chat-template {CHATML}",
        )
    if template_options:
        hf.chat_template = with_all_options(hf.chat_template, template_options)
    return ChatTokenizer(hf, name)
