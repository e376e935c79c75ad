"""What tokenizing needs of a tokenizer, and what it gives."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sftctl.data.conversation import Message

Span = tuple[int, int]  # start and end, in characters


class ChatTokenizer(Protocol):
    """What preparing data needs of a tokenizer and its chat template."""

    name: str
    vocab_size: int
    content_hash: str
    template_hash: str
    special_ids: frozenset[int]
    """Tokens that no text can be mistaken for, such as the end of a turn."""

    def render(
        self, messages: list[Message], tools: list[Any] | None, add_generation_prompt: bool
    ) -> str:
        """The text the model sees; DataError where the template refuses the messages."""
        ...

    def encode_batch(self, texts: list[str]) -> list[tuple[list[int], list[Span]]]:
        """Token ids of each text and the characters each token covers; nothing is added."""
        ...

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files, template included."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class TokenizedExample:
    """One tokenized conversation of T tokens."""

    input_ids: npt.NDArray[np.int32]  # (T,)
    loss_mask: npt.NDArray[np.bool_]  # (T,) True: the loss counts this token

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def num_target_tokens(self) -> int:
        return int(np.count_nonzero(self.loss_mask))
