"""Tokenizers and conversations for tests."""

from pathlib import Path
from typing import Any

from sftctl.data.conversations.conversation import Conversation, from_text
from sftctl.data.reading.rows import raw_rows
from sftctl.model.tokenizer.tokenizer import ChatTokenizer, load_tokenizer

SHARED = Path(__file__).parents[3] / "shared" / "data"

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class CountingTokenizer(ChatTokenizer):
    """Counts how often it renders a conversation."""

    num_renders = 0

    def render(self, *arguments: Any, **keywords: Any) -> str:
        self.num_renders += 1
        return super().render(*arguments, **keywords)


def load(folder: Path, template: str | None = None) -> CountingTokenizer:
    """The tokenizer in a folder, with another chat template if one is given."""
    hf = load_tokenizer(str(folder)).hf
    hf.chat_template = template or hf.chat_template
    return CountingTokenizer(hf, folder.name)


def conversations(path: Path) -> list[Conversation]:
    """All rows of a file; every one must be complete."""
    rows = raw_rows(path, path.name)
    return [from_text(text, "auto", source) for source, text in rows if isinstance(text, bytes)]
