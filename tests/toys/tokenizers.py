"""A transformers tokenizer behind the small protocol that the data layer asks for."""

import hashlib
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt

from sftctl.data.conversations.conversation import Conversation, Message, from_text
from sftctl.data.reading.rows import raw_rows
from sftctl.errors import DataError
from sftctl.model.tokenizer.encoders import Span

SHARED = Path(__file__).parents[3] / "shared" / "data"

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Tokenizer:
    """A transformers fast tokenizer as a ChatTokenizer."""

    def __init__(self, hf: Any, template: str | None = None) -> None:
        self.hf = hf
        self.hf.chat_template = template or hf.chat_template
        self.name = Path(hf.name_or_path).name
        self.vocab_size = len(hf)
        self.content_hash = hashlib.sha256(hf.backend_tokenizer.to_str().encode()).hexdigest()
        self.template_hash = hashlib.sha256(hf.chat_template.encode()).hexdigest()
        added = hf.added_tokens_decoder
        self.special_ids = frozenset(id for id, token in added.items() if token.special)
        self.special_texts = tuple(hf.convert_ids_to_tokens(sorted(self.special_ids)))
        self.bos_id = hf.bos_token_id
        self.is_content_blind = False
        self.engine = "tokenizers"
        self.engine_reason = "a toy"
        self.is_fast = False
        self.num_renders = 0

    def render(
        self, messages: list[Message], tools: list[Any] | None, add_generation_prompt: bool
    ) -> str:
        self.num_renders += 1
        try:
            return self.hf.apply_chat_template(
                messages, tools=tools, add_generation_prompt=add_generation_prompt, tokenize=False
            )
        except jinja2.TemplateError as problem:
            raise DataError(f"the chat template refuses the conversation: {problem}") from problem

    def encode(self, text: str) -> npt.NDArray[np.int32]:
        return self.encode_with_offsets(text)[0]

    def encode_with_offsets(self, text: str) -> tuple[npt.NDArray[np.int32], list[Span]]:
        encoding = self.hf.backend_tokenizer.encode(text, add_special_tokens=False)
        return np.array(encoding.ids, dtype=np.int32), encoding.offsets

    def decode(self, ids: Any, skip_special_tokens: bool = False) -> str:
        return self.hf.decode(
            ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )

    def checked(self) -> "Tokenizer":
        return self

    def by_reference(self, why: str) -> "Tokenizer":
        return self

    def save(self, folder: Path) -> None:
        self.hf.save_pretrained(folder)


def load(folder: Path, template: str | None = None) -> Tokenizer:
    from transformers import AutoTokenizer

    return Tokenizer(AutoTokenizer.from_pretrained(folder), template)


def conversations(path: Path) -> list[Conversation]:
    """All rows of a file; every one must be whole."""
    rows = raw_rows(path, path.name)
    return [from_text(text, "auto", source) for source, text in rows if isinstance(text, bytes)]
