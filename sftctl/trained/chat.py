"""Chat with a trained model, with the chat template that it was trained with."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sftctl.errors import ConfigError, DataError
from sftctl.model.generate import generate
from sftctl.model.load import max_positions
from sftctl.model.sampling import Sampling, check_sampling
from sftctl.model.tokenizer.tokenizer import ChatTokenizer
from sftctl.trained.open import open_trained, say_nothing
from sftctl.words import counted
from sftctl.world import choose_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class ChatSession:
    """A model, and the conversation with it so far."""

    model: "PreTrainedModel"
    tokenizer: ChatTokenizer
    sampling: Sampling
    system: str | None = None
    origin: str = ""  # the run, the model and the step, as text
    messages: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def open(
        cls,
        path: Path,
        sampling: Sampling,
        system: str | None = None,
        seed: int | None = None,
        tell: Callable[[str], None] = say_nothing,
        chat_template: str | None = None,
        tokenizer: str | None = None,
    ) -> "ChatSession":
        """Open the model of a run, a checkpoint, or anything that `train` can start from.

        With `seed`, sampled answers are reproducible. `tell` receives a warning if the final model
        of a run is damaged.
        """
        trained = open_trained(path, tell, chat_template, tokenizer)
        if seed is not None:
            torch.manual_seed(seed)
        check_room(trained.model, sampling)
        device = choose_device("auto")
        model = trained.model.eval().to(device)
        return cls(model, trained.tokenizer, sampling, system, trained.about(path))

    @property
    def about(self) -> str:
        """A line such as `runs/x · SmolLM2-135M · step 8 · greedy`."""
        return f"{self.origin} · {self.sampling.described}"

    def sample_with(self, temperature: float) -> None:
        """Use this temperature for the next answers.

        ConfigError if it is not a valid temperature.
        """
        sampling = replace(self.sampling, temperature=temperature)
        if temperature == 0:
            sampling = replace(sampling, top_p=1.0, top_k=0)
        check_sampling(sampling)
        self.sampling = sampling

    def answer(self, prompt: str, on_text: Callable[[str], None] = lambda piece: None) -> str:
        """The assistant's answer to `prompt`. `on_text` receives each piece of it at once.

        Prompt and answer are added to the conversation. Of an interrupted answer, the text so far
        is added. A prompt that is refused is not added.
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
            # A model can write the text of a special token letter by letter. In the next prompt,
            # this text would be encoded as the special token.
            answer = without_special("".join(pieces), self.tokenizer)
            self.messages = [*messages, {"role": "assistant", "content": answer}]

    def clear(self) -> None:
        """Forget the conversation, but not the system message."""
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
                hint=f"{way}; a smaller --max-new-tokens leaves more positions for the prompt",
            )
        return prompt_ids


def without_special(text: str, tokenizer: ChatTokenizer) -> str:
    """The text without the texts of special tokens, which would be encoded as special tokens."""
    before = None
    while text != before:  # what is left may form the text of another special token
        before = text
        for special in tokenizer.special_texts:
            text = text.replace(special, "")
    return text


def check_room(model: "PreTrainedModel", sampling: Sampling) -> None:
    """ConfigError if the longest answer would leave no position for a prompt."""
    limit = max_positions(model)
    if limit is not None and sampling.max_new_tokens >= limit:
        raise ConfigError(
            f"--max-new-tokens: {sampling.max_new_tokens} leaves no position for a prompt: the "
            f"model has {limit} positions",
            hint=f"--max-new-tokens {limit // 2} leaves half of them for the prompt",
        )
