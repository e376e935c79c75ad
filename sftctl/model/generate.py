"""Answers from a causal model, token by token."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from sftctl.model.sampling import Sampling
from sftctl.model.tokenizer.tokenizer import ChatTokenizer

_HALF_A_LETTER = "\ufffd"  # what the first bytes of a letter decode to until the rest has come


def stop_ids(model: Any, tokenizer: ChatTokenizer) -> list[int]:
    """Tokens that end an answer: the tokenizer's and the model's own, and the template's."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    several = configured if isinstance(configured, list) else [configured]
    found = {tokenizer.hf.eos_token_id, *several, _end_of_turn(tokenizer)} - {None}
    return sorted(int(token) for token in found)


def _end_of_turn(tokenizer: ChatTokenizer) -> int | None:
    """The special token that the chat template puts behind an assistant's words, if it does."""
    words = "sftctl-end-of-turn"
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": words}]
    _, found, rest = tokenizer.render(messages).rpartition(words)
    ids = tokenizer.encode(rest).tolist() if found else []
    return ids[0] if ids and ids[0] in tokenizer.special_ids else None


@torch.no_grad()
def generate(
    model: Any,
    tokenizer: ChatTokenizer,
    prompt_ids: list[int],
    sampling: Sampling,
    on_text: Callable[[str], None] = lambda piece: None,
) -> str:
    """The answer to a prompt; `on_text` is given it piece by piece, as it comes.

    With temperature 0 no generator of random numbers is touched. What `on_text` raises, or a
    KeyboardInterrupt, ends the generation.
    """
    input_ids = torch.tensor([prompt_ids], device=model.device)  # (1, T)
    ends = stop_ids(model, tokenizer)
    stream = _Stream(tokenizer, frozenset(ends), on_text)
    model.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        max_new_tokens=sampling.max_new_tokens,
        max_length=None,
        eos_token_id=ends,
        pad_token_id=ends[0] if ends else 0,
        use_cache=True,
        streamer=stream,
        **sampling.arguments(),
    )
    return stream.text


@dataclass
class _Stream:
    """What `generate` hands its tokens to: the prompt first, then one at a time."""

    tokenizer: ChatTokenizer
    ends: frozenset[int]
    on_text: Callable[[str], None]
    text: str = ""  # handed out so far
    _ids: list[int] = field(default_factory=list)
    _is_prompt: bool = True

    def put(self, value: torch.Tensor) -> None:
        if self._is_prompt:
            self._is_prompt = False
            return
        self._ids += [token for token in value.flatten().tolist() if token not in self.ends]
        whole = self.tokenizer.decode(self._ids, skip_special_tokens=True)
        if not whole.endswith(_HALF_A_LETTER):
            self._hand_out(whole)

    def end(self) -> None:
        self._hand_out(self.tokenizer.decode(self._ids, skip_special_tokens=True))

    def _hand_out(self, whole: str) -> None:
        """Leading blanks are left out; so are trailing ones until something follows them."""
        new = whole.strip()[len(self.text) :]
        if new:
            self.text += new
            self.on_text(new)
