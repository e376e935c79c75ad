"""ChatTokenizer: a transformers fast tokenizer and its chat template."""

import copy
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sftctl.disk import read_refusals
from sftctl.errors import ConfigError, DataError, EngineDiffers
from sftctl.jsonio import dump_canonical, loads
from sftctl.model.source import ModelSource, from_hub_or_disk, quiet, require_tokenizer_folder
from sftctl.model.tokenizer.encoders import (
    Checked,
    Encoder,
    Ids,
    Reference,
    Span,
    Splintr,
    fast_engine,
)
from sftctl.model.tokenizer.template_analysis import is_content_blind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Engine = Literal["auto", "hf"]


class ChatTokenizer:
    """Renders conversations with the chat template and encodes the text. Adds no tokens."""

    def __init__(self, hf: "PreTrainedTokenizerFast", name: str) -> None:
        self.hf = hf
        self.name = name
        self.vocab_size = len(hf)
        self.bos_id: int | None = hf.bos_token_id
        self.is_content_blind = is_content_blind(hf.chat_template or "")
        self._reference = Reference(hf)
        self._encoder: Encoder = self._reference
        self.engine_reason = "no other was requested"
        self.special_ids = frozenset(hf.all_special_ids) | _special_added(hf)
        self.special_texts = tuple(hf.convert_ids_to_tokens(sorted(self.special_ids)))
        self.content_hash = self._hash_content()
        self.template_hash = hashlib.sha256((hf.chat_template or "").encode()).hexdigest()

    def render(
        self,
        messages: list[dict[str, Any]],
        tools: list[Any] | None = None,
        add_generation_prompt: bool = False,
    ) -> str:
        """The text that the model sees; DataError if the template refuses the messages."""
        from jinja2 import TemplateError

        try:
            text: str = self.hf.apply_chat_template(
                messages, tools=tools, add_generation_prompt=add_generation_prompt, tokenize=False
            )
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as problem:
            raise DataError(
                f"the chat template refuses the conversation: {problem}",
                "most templates want user and assistant in turn, after at most one system message",
            ) from problem
        return text

    @property
    def engine(self) -> str:
        """Name and version of the library that encodes."""
        return self._encoder.name

    @property
    def is_fast(self) -> bool:
        """True: `encode` is not the reference."""
        return self._encoder.is_fast

    def encode(self, text: str) -> Ids:
        """Token ids (T,); no BOS is added."""
        return self._encoder.encode(text)

    def encode_with_offsets(self, text: str) -> tuple[Ids, list[Span]]:
        """The reference's token ids, and each token's (start, end) in characters; adds no BOS."""
        return self._reference.encode_with_offsets(text)

    def with_engine(self, engine: Engine) -> "ChatTokenizer":
        """auto: a copy with the fast engine if it is equal on probes. hf: with the reference."""
        if engine == "hf":
            return self.by_reference("requested with --engine hf")
        try:
            return self.fast()
        except EngineDiffers as problem:
            return self.by_reference(problem.message)

    def fast(self) -> "ChatTokenizer":
        """A copy with the fast engine; EngineDiffers if it is not equal on probes."""
        return self.with_encoder(fast_engine(self.hf), "proved equal to the reference on probes")

    def checked(self) -> "ChatTokenizer":
        """A copy that compares all ids with the reference's; EngineDiffers if they differ."""
        fast = self._encoder
        if not isinstance(fast, Splintr):
            return self
        return self.with_encoder(Checked(fast, self._reference), self.engine_reason)

    def by_reference(self, why: str) -> "ChatTokenizer":
        """A copy with the reference encoder, and the reason for it."""
        return self.with_encoder(self._reference, why)

    def with_encoder(self, encoder: Encoder, why: str) -> "ChatTokenizer":
        """A copy that encodes with `encoder`."""
        other = copy.copy(self)
        other._encoder = encoder
        other.engine_reason = why
        return other

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> str:
        """Token ids back to text, the inverse of `encode`."""
        text: str = self.hf.decode(
            token_ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        return text

    def save(self, folder: Path) -> None:
        """Write the Hugging Face files, template included."""
        self.hf.save_pretrained(folder)

    def _hash_content(self) -> str:
        """A hash of all that decides ids: vocabulary, merges, normalizer, special tokens."""
        content = loads(self.hf.backend_tokenizer.to_str())
        for call_setting in ("truncation", "padding"):
            content.pop(call_setting, None)
        special = [str(self.hf.bos_token), str(self.hf.eos_token), str(self.hf.pad_token)]
        return hashlib.sha256(dump_canonical([content, special])).hexdigest()


def _special_added(hf: "PreTrainedTokenizerFast") -> frozenset[int]:
    """Ids of added tokens marked special; the configuration need not name them."""
    added = hf.added_tokens_decoder
    return frozenset(index for index, token in added.items() if token.special)


def load_tokenizer(
    name: str, chat_template: Path | str | None = None, *, template_required: bool = True
) -> ChatTokenizer:
    """Load from a directory, hub name or .gguf file.

    ConfigError if there is no fast tokenizer, or no chat template and `template_required`.
    """
    quiet()
    from transformers import AutoTokenizer

    source = ModelSource.of(name)
    require_tokenizer_folder(name)
    if source.is_minimind:
        raise ConfigError(
            f"{name}: holds weights only, no tokenizer",
            hint="give --tokenizer DIR (MiniMind's model/ folder), or a prepared store",
        )
    with from_hub_or_disk(f"tokenizer {name}", source):
        hf = AutoTokenizer.from_pretrained(source.location, **source.arguments)
    if not getattr(hf, "is_fast", False):
        raise ConfigError(
            f"tokenizer {name}: has no fast tokenizer (tokenizer.json)",
            hint="masks need character offsets, which only fast tokenizers return: choose another",
        )
    if chat_template is not None:
        hf.chat_template = read_template(Path(chat_template))
    if template_required and not hf.chat_template:
        hint = "train --set data.chat_template=FILE, or prepare-data --chat-template FILE"
        if Path(name).is_dir():
            hint += f"; every command reads {name}/chat_template.jinja"
        raise ConfigError(f"tokenizer {name}: has no chat template", hint)
    return ChatTokenizer(hf, name)


def read_template(file: Path) -> str:
    """The text of a chat template's file."""
    try:
        with read_refusals(file, ConfigError, "the template must be a Jinja file"):
            return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as problem:
        raise ConfigError(
            f"{file}: not UTF-8: {problem.reason}", hint="save it as UTF-8"
        ) from problem
