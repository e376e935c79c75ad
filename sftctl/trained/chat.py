"""Talk to a trained model: the chat template at inference is the one of training."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sftctl.errors import ConfigError, DataError
from sftctl.model.generate import generate
from sftctl.model.load import max_positions
from sftctl.model.sampling import Sampling
from sftctl.model.tokenizer.tokenizer import ChatTokenizer
from sftctl.trained.open import open_trained
from sftctl.words import counted
from sftctl.world import choose_device


@dataclass
class ChatSession:
    """A model, and what has been said so far."""

    model: Any
    tokenizer: ChatTokenizer
    sampling: Sampling
    system: str | None = None
    messages: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def open(
        cls, path: Path, sampling: Sampling, system: str | None = None, seed: int | None = None
    ) -> "ChatSession":
        """A session with the model of a run, a checkpoint or a directory.

        `seed` makes a session of sampled answers repeatable; without it each is another.
        """
        trained = open_trained(path)
        if seed is not None:
            torch.manual_seed(seed)
        check_room(trained.model, sampling)
        device = choose_device("auto")
        return cls(trained.model.eval().to(device), trained.tokenizer, sampling, system)

    def answer(self, prompt: str, on_text: Callable[[str], None] = lambda piece: None) -> str:
        """The assistant's turn after the user's, also handed out piece by piece.

        Both are remembered when it ends; after an interruption, what had been said by then. A
        prompt that can't be answered is not remembered.
        """
        asked = [*self.messages, {"role": "user", "content": prompt}]
        said: list[str] = []

        def hear(piece: str) -> None:
            said.append(piece)
            on_text(piece)

        prompt_ids = self._prompt_ids(asked)
        try:
            return generate(self.model, self.tokenizer, prompt_ids, self.sampling, hear)
        finally:
            self.messages = [*asked, {"role": "assistant", "content": "".join(said)}]

    def clear(self) -> None:
        """Forget what was said; the system message stays."""
        self.messages = []

    def _prompt_ids(self, messages: list[dict[str, Any]]) -> list[int]:
        system = [{"role": "system", "content": self.system}] if self.system is not None else []
        text = self.tokenizer.render([*system, *messages], None, add_generation_prompt=True)
        prompt_ids: list[int] = self.tokenizer.encode(text).tolist()
        most = max_positions(self.model)
        wanted = len(prompt_ids) + self.sampling.max_new_tokens
        if most is not None and wanted > most:
            what = "the conversation" if self.messages else "the prompt"
            way = "/clear forgets what was said" if self.messages else "shorten it"
            raise DataError(
                f"{what} has {counted(len(prompt_ids), 'token')}: with --max-new-tokens "
                f"{self.sampling.max_new_tokens} that is beyond the model's {most} positions",
                hint=f"{way}; a smaller --max-new-tokens leaves more room",
            )
        return prompt_ids


def check_room(model: Any, sampling: Sampling) -> None:
    """Refuse an answer that no prompt would leave room for."""
    most = max_positions(model)
    if most is not None and sampling.max_new_tokens >= most:
        raise ConfigError(
            f"--max-new-tokens: {sampling.max_new_tokens}, and the model has {most} positions for "
            "prompt and answer",
            hint=f"--max-new-tokens {most // 2} leaves half of them to the prompt",
        )
