"""Samples: the model's answers to a few validation prompts. They do not influence the training."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from sftctl.data.example import TokenizedExample
from sftctl.model.generate import generate
from sftctl.model.load import max_positions
from sftctl.model.row_attention import own_attention
from sftctl.model.sampling import Sampling
from sftctl.tracking import status
from sftctl.tracking.tracker import Tracker
from sftctl.train.engine.compiled import uncompiled
from sftctl.train.session import Session

MAX_NEW_TOKENS = 128
# Lines that templates write before an answer.
_MARKS = ("", "assistant", "model", "ASSISTANT:", "<think>", "</think>")


@dataclass(frozen=True, slots=True)
class Prompt:
    """The start of an example up to its first target token, and the answer in the data."""

    prompt_ids: list[int]
    reference_ids: list[int]

    @classmethod
    def of(cls, example: TokenizedExample) -> "Prompt":
        start = int(np.argmax(example.loss_mask))
        turn = example.loss_mask[start:]
        end = start + (len(turn) if turn.all() else int(np.argmin(turn)))
        return cls(example.input_ids[:start].tolist(), example.input_ids[start:end].tolist())


class _Interrupted(Exception):
    """Raised if a signal comes in the middle of an answer."""


def show_samples(session: Session, tracker: Tracker) -> None:
    """Answer `tracking.samples` validation prompts on rank 0, and report each answer as an event.

    Decoding is greedy, so no random number is drawn. After a signal, no more tokens are generated.
    """
    if not session.world.is_main or why_no_samples(session) is not None:
        return
    module, tokenizer = session.state.loss_module, session.inputs.tokenizer

    def check_signal(piece: str) -> None:
        if session.stop.heard is not None:
            raise _Interrupted

    module.eval()
    with suppress(_Interrupted):
        for number, prompt in enumerate(_prompts(session)):
            status.doing(f"sampling {number + 1}/{session.config.tracking.samples}")
            sampling = Sampling(_room(module.model, prompt))
            with (
                session.state.autocast(session.world.device),
                own_attention(module.model, session.state.own_attention),
                uncompiled(module),
            ):
                reply = generate(module.model, tokenizer, prompt.prompt_ids, sampling, check_signal)
            tracker.event(
                "sample",
                session.state.progress.step,
                number=number,
                prompt=tokenizer.decode(prompt.prompt_ids),
                question=_question(tokenizer.decode(prompt.prompt_ids, skip_special_tokens=True)),
                reply=reply,
                reference=tokenizer.decode(prompt.reference_ids, skip_special_tokens=True).strip(),
            )
    status.doing("")
    module.train()


def why_no_samples(session: Session) -> str | None:
    """Why a run that asks for samples gets none; None if it gets samples, or asks for none."""
    wanted, validation = session.config.tracking.samples, session.inputs.validation
    if wanted and session.state.is_sharded:
        return "tracking.samples: no samples under fsdp: no rank holds the complete model"
    if wanted and validation is None:
        return "tracking.samples: no samples, the data has no validation part"
    if wanted and validation is not None and validation.manifest.train_on == "all":
        return "tracking.samples: no samples, because train_on = all trains on the prompts too"
    return None


def _question(prompt: str) -> str:
    """The last line of a prompt. Lines that begin an answer, such as `assistant`, do not count."""
    lines = [line for line in map(str.strip, prompt.splitlines()) if line not in _MARKS]
    return lines[-1] if lines else ""


def _prompts(session: Session) -> Iterator[Prompt]:
    """The first validation prompts that leave the model a position for an answer, or more."""
    store, left = session.inputs.validation, session.config.tracking.samples
    if store is None:
        return
    for index in range(len(store)):
        if left == 0:
            return
        prompt = Prompt.of(store[index])
        if prompt.prompt_ids and _room(session.state.loss_module.model, prompt) > 0:
            left -= 1
            yield prompt


def _room(model: Any, prompt: Prompt) -> int:
    """The largest number of tokens for an answer. Prompt and answer share the model's positions."""
    positions = max_positions(model)
    if positions is None:
        return MAX_NEW_TOKENS
    return min(MAX_NEW_TOKENS, positions - len(prompt.prompt_ids))
