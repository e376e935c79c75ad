"""What tokenizing needs of a tokenizer, and what it gives."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sftctl.data.conversations.conversation import Message

Span = tuple[int, int]  # start and end, in characters


class ChatTokenizer(Protocol):
    """What preparing data needs of a tokenizer and its chat template."""

    name: str
    vocab_size: int
    content_hash: str
    template_hash: str
    special_ids: frozenset[int]
    """Tokens that no text can be mistaken for, such as the end of a turn."""
    special_texts: tuple[str, ...]
    """How they are written."""
    bos_id: int | None
    """The token that a text begins with, where the tokenizer has one."""
    is_content_blind: bool
    """True: what the template writes around contents depends on roles alone."""
    engine_reason: str
    """Why it is the engine that encodes."""

    @property
    def engine(self) -> str:
        """Name and version of what encodes."""
        ...

    @property
    def is_fast(self) -> bool:
        """True: `encode` is much faster than `encode_with_offsets`, which is the reference."""
        ...

    def render(
        self, messages: list[Message], tools: list[Any] | None, add_generation_prompt: bool
    ) -> str:
        """The text the model sees; DataError where the template refuses the messages."""
        ...

    def encode(self, text: str) -> npt.NDArray[np.int32]:
        """Token ids (T,); nothing is added."""
        ...

    def encode_with_offsets(self, text: str) -> tuple[npt.NDArray[np.int32], list[Span]]:
        """Token ids by the reference, and the characters that each token covers."""
        ...

    def decode(self, token_ids: Any, skip_special_tokens: bool = True) -> str:
        """Token ids back to text."""
        ...

    def checked(self) -> "ChatTokenizer":
        """This one, but each `encode` compared with the reference: EngineDiffers tells of one."""
        ...

    def by_reference(self, why: str) -> "ChatTokenizer":
        """This one, but encoding by the reference alone."""
        ...

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files, template included."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class TokenizedExample:
    """One tokenized conversation of T tokens."""

    input_ids: npt.NDArray[np.int32]  # (T,)
    loss_mask: npt.NDArray[np.bool_]  # (T,) True: the loss counts this token

    def first(self, num_tokens: int) -> "TokenizedExample":
        """The beginning of the example."""
        return TokenizedExample(self.input_ids[:num_tokens], self.loss_mask[:num_tokens])

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def num_target_tokens(self) -> int:
        return int(np.count_nonzero(self.loss_mask))


@dataclass(frozen=True, slots=True, eq=False)
class ExampleArrays:
    """N examples, one behind the other, T tokens in all: how they travel between processes."""

    input_ids: npt.NDArray[np.int32]  # (T,)
    loss_mask: npt.NDArray[np.bool_]  # (T,)
    lengths: npt.NDArray[np.int32]  # (N,)
    target_lengths: npt.NDArray[np.int32]  # (N,)

    @classmethod
    def pack(cls, examples: Sequence[TokenizedExample]) -> "ExampleArrays":
        """Copies of the examples' arrays, joined."""
        ids = [np.empty(0, dtype=np.int32), *(example.input_ids for example in examples)]
        masks = [np.empty(0, dtype=np.bool_), *(example.loss_mask for example in examples)]
        targets = [example.num_target_tokens for example in examples]
        lengths = np.array([example.num_tokens for example in examples], dtype=np.int32)
        return cls(
            np.concatenate(ids), np.concatenate(masks), lengths, np.array(targets, dtype=np.int32)
        )
