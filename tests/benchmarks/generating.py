"""Answers for metrics, compared with transformers' `generate`, one by one and in batches.

`python -m tests.benchmarks --only generate`: SmolLM2-135M-Instruct, and the preset `minimind-3`
with random weights, answer rows of Alpaca greedily. No answer ends before `--tokens` tokens, so all
ways have the same work, as with a model that has not learned to end. One by one is the slowest, and
answers every fourth row. All ways run in one process, in turns, `--rounds` times. A rate is given
by the clock, and by the process's time on all cores, which a busy machine changes less.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from sftctl.jsonio import loads
from sftctl.model.generate import batches_by_length, generate_batch
from sftctl.model.load import load_model
from sftctl.model.sampling import Sampling
from sftctl.model.tokenizer.tokenizer import ChatTokenizer, load_tokenizer
from tests.toys.fetched import smollm2_file

MICRO_BATCH_TOKENS = 1024  # the default; metrics answer four times as many at once
NAIVE_BATCH = 8
OURS = "sftctl, sorted by length"
ALONE = "transformers, one by one"
BATCHED = f"transformers, batches of {NAIVE_BATCH} in the file's order"
EVERY = {OURS: 1, ALONE: 4, BATCHED: 1}

Answering = Callable[[list[list[int]]], list[str]]


def generating(
    alpaca: Path, downloads: Path, minimind: Path, num_rows: int, num_tokens: int, num_rounds: int
) -> Iterator[tuple[list[list[str]], str]]:
    """For each model a row for each way, with tokens a second and ratios; and a sentence."""
    smollm2 = str(smollm2_file(downloads))
    for shown, model, tokenizer in (
        ("minimind-3", "minimind-3", str(minimind)),
        ("SmolLM2", smollm2, smollm2),
    ):
        loaded = load_tokenizer(tokenizer)
        yield compared(shown, model, loaded, prompts_of(alpaca, loaded, num_rows), num_tokens,
                       num_rounds)  # fmt: skip


def compared(
    shown: str,
    name: str,
    tokenizer: ChatTokenizer,
    prompts: list[list[int]],
    num_tokens: int,
    num_rounds: int,
) -> tuple[list[list[str]], str]:
    """The three ways with one model, in turns."""
    model = without_ends(load_model(name, tokenizer, 0).eval())
    ways = answering(model, tokenizer, num_tokens)
    by_clock: dict[str, list[float]] = {way: [] for way in ways}
    by_processor: dict[str, list[float]] = {way: [] for way in ways}
    texts: dict[str, list[str]] = {}
    for answer in ways.values():  # warms up
        answer(prompts[:2])
    for number in range(num_rounds):
        for way, answer in ways.items():
            asked = prompts[:: EVERY[way]]
            started, worked = time.perf_counter(), time.process_time()
            texts[way] = answer(asked)
            num_answered = len(asked) * num_tokens
            by_clock[way].append(num_answered / (time.perf_counter() - started))
            by_processor[way].append(num_answered / (time.process_time() - worked))
            rate = f"{by_clock[way][-1]:.1f}, {by_processor[way][-1]:.1f} tokens/s"
            print(f"{shown}, round {number + 1}: {way}: {rate}", file=sys.stderr, flush=True)
    rows = [
        [f"{shown}: {way}", *columns(by_clock, way), *columns(by_processor, way)] for way in ways
    ]
    alone = texts[ALONE]
    ours = texts[OURS][:: EVERY[ALONE]]  # without what follows an end
    same = sum(one.startswith(our) for one, our in zip(alone, ours, strict=True))
    return rows, f"{shown}: {same} of {len(alone)} answers are those of one by one."


def columns(rates: dict[str, list[float]], way: str) -> list[str]:
    """The median rate of a way; and how many times as fast ours is, with the rounds' range."""
    rate = f"{median(rates[way]):.1f}"
    if way == OURS:
        return [rate, ""]
    found = sorted(one / other for one, other in zip(rates[OURS], rates[way], strict=True))
    return [rate, f"{median(found):.2f} ({found[0]:.2f} to {found[-1]:.2f})"]


def without_ends(model: Any) -> Any:
    """Let the model's `generate` go on until the most tokens, for whoever calls it."""
    generate, model.generation_config.eos_token_id = model.generate, None
    model.generate = lambda **options: generate(**options | {"eos_token_id": None})
    return model


def prompts_of(alpaca: Path, tokenizer: ChatTokenizer, num_rows: int) -> list[list[int]]:
    """The prompts of rows evenly spaced in the file, as token ids."""
    rows = loads(alpaca.read_bytes())
    chosen = [rows[i * len(rows) // num_rows] for i in range(num_rows)]
    texts = ["\n".join(filter(None, (row["instruction"], row.get("input")))) for row in chosen]
    messages = [[{"role": "user", "content": text}] for text in texts]
    return [tokenizer.encode(tokenizer.render(m, None, True)).tolist() for m in messages]


def answering(model: Any, tokenizer: ChatTokenizer, num_tokens: int) -> dict[str, Answering]:
    """The three ways to answer several prompts, by name."""
    sampling = Sampling(num_tokens)

    def ours(prompts: list[list[int]]) -> list[str]:
        lengths = [*map(len, prompts)]
        found: dict[int, str] = {}
        for batch in batches_by_length(lengths, num_tokens, 4 * MICRO_BATCH_TOKENS):
            answers = generate_batch(model, tokenizer, [prompts[n] for n in batch], sampling)
            found |= dict(zip(batch, answers, strict=True))
        return [found[number] for number in range(len(prompts))]

    @torch.no_grad()
    def theirs(prompts: Sequence[list[int]]) -> list[str]:
        tokenizer.hf.padding_side = "left"
        tokenizer.hf.pad_token = tokenizer.hf.pad_token or tokenizer.hf.eos_token
        inputs = tokenizer.hf.pad({"input_ids": [*prompts]}, return_tensors="pt")
        padding = tokenizer.hf.pad_token_id
        output = model.generate(
            **inputs, max_new_tokens=num_tokens, do_sample=False, pad_token_id=padding
        )
        new = output[:, inputs["input_ids"].shape[1] :].tolist()
        return [text.strip() for text in tokenizer.hf.batch_decode(new, skip_special_tokens=True)]

    def in_batches(prompts: list[list[int]], size: int) -> list[str]:
        starts = range(0, len(prompts), size)
        return [text for start in starts for text in theirs(prompts[start : start + size])]

    return {
        OURS: ours,
        ALONE: lambda prompts: in_batches(prompts, 1),
        BATCHED: lambda prompts: in_batches(prompts, NAIVE_BATCH),
    }
