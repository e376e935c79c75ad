"""Talk to a trained model: the chat template at inference is the one of training."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sftctl.model.tokenizer import HFTokenizer
from sftctl.serve.trained import open_trained


@dataclass
class ChatSession:
    """A model, and what has been said so far."""

    model: Any
    tokenizer: HFTokenizer
    max_new_tokens: int
    temperature: float  # 0: greedy
    messages: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path, max_new_tokens: int, temperature: float) -> "ChatSession":
        """A session with the model of a run, a checkpoint or a directory."""
        model, tokenizer = open_trained(path)
        return cls(model.eval(), tokenizer, max_new_tokens, temperature)

    @torch.no_grad()
    def answer(self, prompt: str) -> str:
        """The assistant's turn after the user's; both are remembered."""
        self.messages.append({"role": "user", "content": prompt})
        text = self.tokenizer.render(self.messages, None, add_generation_prompt=True)
        prompt_ids = self.tokenizer.encode(text).tolist()
        input_ids = torch.tensor([prompt_ids])  # (1, T)
        greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        sampling = {"do_sample": True, "temperature": self.temperature}
        output = self.model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            max_new_tokens=self.max_new_tokens,
            eos_token_id=self.tokenizer.hf.eos_token_id,
            pad_token_id=self.tokenizer.hf.eos_token_id,
            **(sampling if self.temperature > 0 else greedy),
        )
        reply = self.tokenizer.decode(output[0, len(prompt_ids) :].tolist()).strip()
        self.messages.append({"role": "assistant", "content": reply})
        return reply


def converse(session: ChatSession) -> None:
    """Read lines and answer them until end of input or /quit; /new forgets what was said."""
    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if line == "/quit":
            return
        if line == "/new":
            session.messages.clear()
        elif line:
            print(session.answer(line))
