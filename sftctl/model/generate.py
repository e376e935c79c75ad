"""Generate the answers of a causal model: to one prompt, or to many prompts in batches."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from sftctl.errors import DataError
from sftctl.model.sampling import Sampling
from sftctl.model.tokenizer.tokenizer import ChatTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# The text that is decoded while some bytes of a character are still missing.
_INCOMPLETE = "\ufffd"


def stop_ids(model: "PreTrainedModel", tokenizer: ChatTokenizer) -> list[int]:
    """The tokens that end an answer, according to the tokenizer, the model and the chat
    template.
    """
    configured = getattr(model.generation_config, "eos_token_id", None)
    several = configured if isinstance(configured, list) else [configured]
    found = {tokenizer.hf.eos_token_id, *several, *ends_of_turn(tokenizer)} - {None}
    return sorted(int(token) for token in found)


def ends_of_turn(tokenizer: ChatTokenizer) -> set[int]:
    """The special token that the chat template puts after an assistant's message.

    If there is none (GLM 4.5), the first token of the next message ends the turn. Then the tokens
    that begin a user's and a tool's message are returned.
    """
    answer = {"role": "assistant", "content": "sftctl-end-of-turn"}
    messages = [{"role": "user", "content": "?"}, answer]
    if ends := _special_after(answer["content"], messages, tokenizer):
        return ends
    found: set[int] = set()
    for role in ("user", "tool"):
        # Many templates refuse a tool's message that no tool call asked for.
        with suppress(DataError):
            later = [*messages, {"role": role, "content": "?"}]
            found |= _special_after(answer["content"], later, tokenizer)
    return found


def _special_after(
    content: str, messages: list[dict[str, str]], tokenizer: ChatTokenizer
) -> set[int]:
    """The special token that follows `content` in the rendered messages; empty if none follows."""
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
    """The answer to a prompt. `on_text` receives each piece of the answer as soon as it is decoded.

    With temperature 0 no random number is drawn. An exception in `on_text`, or KeyboardInterrupt,
    ends the generation.
    """
    ends = stop_ids(model, tokenizer)
    streamer = _Streamer(tokenizer, frozenset(ends), on_text)
    _generate(model, [prompt_ids], ends, sampling, streamer=streamer)
    return streamer.text


@torch.no_grad()
def generate_batch(
    model: "PreTrainedModel",
    tokenizer: ChatTokenizer,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    is_stopped: Callable[[], bool] = lambda: False,
) -> list[str]:
    """The answers to several prompts, computed together. `generate` gives the same answers.

    Shorter prompts get padding on the left. No token attends to the padding, and the positions of a
    prompt start at its first own token. `is_stopped` is called after each generated token. If it
    returns True, all answers end there.
    """
    ends = stop_ids(model, tokenizer)
    output = _generate(
        model, prompts, ends, sampling, stopping_criteria=[lambda *_, **__: is_stopped()]
    )
    answers = output[:, max(map(len, prompts)) :].tolist()
    return [_text(tokenizer, _up_to_an_end(answer, ends)) for answer in answers]


def batches_by_length(
    lengths: Sequence[int], max_new_tokens: int, most_tokens: int, *, may_pad: bool = True
) -> list[list[int]]:
    """Divide prompts into batches. Returns the indices of each batch's prompts, shortest first.

    A batch has at most `most_tokens` tokens, including padding and answers of full length. A longer
    prompt gets a batch of its own. Without `may_pad`, all prompts of a batch have the same length.
    """
    batches: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda one: (lengths[one], one)):
        last = batches[-1] if batches else []
        rows = len(last) + 1
        is_full = rows * (lengths[number] + max_new_tokens) > most_tokens
        if not last or is_full or (not may_pad and lengths[last[0]] != lengths[number]):
            batches.append([number])
        else:
            last.append(number)
    return batches


def _generate(
    model: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    ends: list[int],
    sampling: Sampling,
    **options: Any,
) -> Any:
    """Run `model.generate` on prompts padded to one length.

    Returns token ids (N, longest + new).
    """
    longest, padding = max(map(len, prompts)), ends[0] if ends else 0
    rows = [[padding] * (longest - len(prompt)) + [*prompt] for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return model.generate(
        input_ids=torch.tensor(rows, device=model.device),  # (N, T)
        attention_mask=torch.tensor(mask, device=model.device),
        max_new_tokens=sampling.max_new_tokens,
        max_length=None,
        eos_token_id=ends,
        pad_token_id=padding,
        use_cache=True,
        **options,
        **sampling.arguments(),
    )


def _up_to_an_end(answer: list[int], ends: list[int]) -> list[int]:
    """The tokens before the first token that ends an answer."""
    return answer[: next((n for n, token in enumerate(answer) if token in ends), len(answer))]


def _text(tokenizer: ChatTokenizer, answer: list[int]) -> str:
    """An answer as text, without special tokens.

    The text may become part of the next prompt, where the text of a special token would become the
    special token.
    """
    return tokenizer.decode(answer, skip_special_tokens=True).strip()


@dataclass
class _Streamer:
    """Receives tokens from `model.generate`: first the prompt, then one at a time."""

    tokenizer: ChatTokenizer
    ends: frozenset[int]
    on_text: Callable[[str], None]
    text: str = ""  # what `on_text` has received so far
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
        """The answer so far, without special tokens (see `_text`)."""
        return self.tokenizer.decode(self._ids, skip_special_tokens=True)

    def _pass_on(self, decoded: str) -> None:
        """Pass on the new text. Blanks at the start are dropped. Blanks at the end wait for more
        text.
        """
        new = decoded.strip()[len(self.text) :]
        if new:
            self.text += new
            self.on_text(new)
