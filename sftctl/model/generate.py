"""Answers of a causal model, token by token."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from sftctl.errors import DataError
from sftctl.model.sampling import Sampling
from sftctl.model.tokenizer.tokenizer import ChatTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_INCOMPLETE = "\ufffd"  # what the first bytes of a character decode to until the others follow


def stop_ids(model: "PreTrainedModel", tokenizer: ChatTokenizer) -> list[int]:
    """Tokens that end an answer: those of the tokenizer, of the model and of the chat template."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    several = configured if isinstance(configured, list) else [configured]
    found = {tokenizer.hf.eos_token_id, *several, *ends_of_turn(tokenizer)} - {None}
    return sorted(int(token) for token in found)


def ends_of_turn(tokenizer: ChatTokenizer) -> set[int]:
    """The special token that the chat template puts after an assistant's message, if any.

    If there is none, the first token of the next message ends the turn (GLM 4.5). That is the token
    that begins a message of a user, or of a tool.
    """
    answer = {"role": "assistant", "content": "sftctl-end-of-turn"}
    messages = [{"role": "user", "content": "?"}, answer]
    if ends := _special_after(answer["content"], messages, tokenizer):
        return ends
    found: set[int] = set()
    for role in ("user", "tool"):
        with suppress(DataError):  # many templates refuse a tool's message here
            later = [*messages, {"role": role, "content": "?"}]
            found |= _special_after(answer["content"], later, tokenizer)
    return found


def _special_after(
    content: str, messages: list[dict[str, str]], tokenizer: ChatTokenizer
) -> set[int]:
    """The special token that follows a content in the rendered messages, or nothing."""
    _, found, rest = tokenizer.render(messages).rpartition(content)
    ids = tokenizer.encode(rest.lstrip()).tolist() if found else []
    return {ids[0]} & tokenizer.special_ids if ids else set()


@torch.no_grad()
def generate(
    model: "PreTrainedModel",
    tokenizer: ChatTokenizer,
    prompt_ids: list[int],
    sampling: Sampling,
    on_text: Callable[[str], None] = lambda piece: None,
) -> str:
    """The answer to a prompt; `on_text` receives each piece of it as soon as it is decoded.

    With temperature 0 no random number is drawn. An exception in `on_text`, or KeyboardInterrupt,
    ends the generation.
    """
    input_ids = torch.tensor([prompt_ids], device=model.device)  # (1, T)
    ends = stop_ids(model, tokenizer)
    streamer = _Streamer(tokenizer, frozenset(ends), on_text)
    model.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        max_new_tokens=sampling.max_new_tokens,
        max_length=None,
        eos_token_id=ends,
        pad_token_id=ends[0] if ends else 0,
        use_cache=True,
        streamer=streamer,
        **sampling.arguments(),
    )
    return streamer.text


@dataclass
class _Streamer:
    """Receives tokens from `model.generate`: first the prompt, then one at a time."""

    tokenizer: ChatTokenizer
    ends: frozenset[int]
    on_text: Callable[[str], None]
    text: str = ""  # passed to `on_text` so far
    _ids: list[int] = field(default_factory=list)
    _is_prompt: bool = True

    def put(self, value: torch.Tensor) -> None:
        if self._is_prompt:
            self._is_prompt = False
            return
        self._ids += [token for token in value.flatten().tolist() if token not in self.ends]
        decoded = self._decoded()
        if not decoded.endswith(_INCOMPLETE):
            self._pass_on(decoded)

    def end(self) -> None:
        self._pass_on(self._decoded())

    def _decoded(self) -> str:
        """The answer so far. Special tokens in it are not text: the next prompt repeats it."""
        return self.tokenizer.decode(self._ids, skip_special_tokens=True)

    def _pass_on(self, decoded: str) -> None:
        """Pass on what is new. Leading blanks are dropped; trailing ones wait for more text."""
        new = decoded.strip()[len(self.text) :]
        if new:
            self.text += new
            self.on_text(new)
