"""Chat with a trained model, using the chat template that it was trained with."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sftctl.errors import ConfigError, DataError
from sftctl.model.generate import generate
from sftctl.model.load import max_positions
from sftctl.model.sampling import Sampling
from sftctl.model.tokenizer.tokenizer import ChatTokenizer
from sftctl.trained.open import open_trained
from sftctl.words import counted
from sftctl.world import choose_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class ChatSession:
    """A model and the conversation so far."""

    model: "PreTrainedModel"
    tokenizer: ChatTokenizer
    sampling: Sampling
    system: str | None = None
    messages: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def open(
        cls, path: Path, sampling: Sampling, system: str | None = None, seed: int | None = None
    ) -> "ChatSession":
        """A session with the model of a run, a checkpoint or a model directory.

        With `seed`, sampled answers are repeatable.
        """
        trained = open_trained(path)
        if seed is not None:
            torch.manual_seed(seed)
        check_room(trained.model, sampling)
        device = choose_device("auto")
        return cls(trained.model.eval().to(device), trained.tokenizer, sampling, system)

    def answer(self, prompt: str, on_text: Callable[[str], None] = lambda piece: None) -> str:
        """The assistant's answer to `prompt`; `on_text` receives it piece by piece.

        Prompt and answer are added to the conversation. If the answer is interrupted, its text up
        to then is added. A prompt that is refused is not added.
        """
        messages = [*self.messages, {"role": "user", "content": prompt}]
        pieces: list[str] = []

        def collect(piece: str) -> None:
            pieces.append(piece)
            on_text(piece)

        prompt_ids = self._prompt_ids(messages)
        try:
            return generate(self.model, self.tokenizer, prompt_ids, self.sampling, collect)
        finally:
            self.messages = [*messages, {"role": "assistant", "content": "".join(pieces)}]

    def clear(self) -> None:
        """Forget the conversation; keep the system message."""
        self.messages = []

    def _prompt_ids(self, messages: list[dict[str, Any]]) -> list[int]:
        system = [{"role": "system", "content": self.system}] if self.system is not None else []
        text = self.tokenizer.render([*system, *messages], None, add_generation_prompt=True)
        prompt_ids: list[int] = self.tokenizer.encode(text).tolist()
        limit = max_positions(self.model)
        wanted = len(prompt_ids) + self.sampling.max_new_tokens
        if limit is not None and wanted > limit:
            what = "the conversation" if self.messages else "the prompt"
            way = "/clear forgets the conversation" if self.messages else "shorten it"
            raise DataError(
                f"{what} has {counted(len(prompt_ids), 'token')}: with --max-new-tokens "
                f"{self.sampling.max_new_tokens} that is beyond the model's {limit} positions",
                hint=f"{way}; a smaller --max-new-tokens leaves more room",
            )
        return prompt_ids


def check_room(model: "PreTrainedModel", sampling: Sampling) -> None:
    """Refuse a maximum answer that leaves no room for a prompt."""
    limit = max_positions(model)
    if limit is not None and sampling.max_new_tokens >= limit:
        raise ConfigError(
            f"--max-new-tokens: {sampling.max_new_tokens} leaves no room for a prompt: the model "
            f"has {limit} positions",
            hint=f"--max-new-tokens {limit // 2} leaves half of them for the prompt",
        )
