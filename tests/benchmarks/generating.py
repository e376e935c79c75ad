"""Answers for metrics against transformers' `generate`, one prompt by one and in batches.

`python -m tests.benchmarks --only generate --examples 200`: SmolLM2-135M-Instruct answers rows of
Alpaca, greedily, with at most `--tokens` tokens. All three ways run in one process, in turns of 64
rows each, so that a busy moment meets all of them.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from sftctl.jsonio import loads
from sftctl.model.generate import batches_by_length, generate_batch, stop_ids
from sftctl.model.load import load_model
from sftctl.model.sampling import Sampling
from sftctl.model.tokenizer.tokenizer import ChatTokenizer, load_tokenizer
from tests.toys.fetched import smollm2_file

MICRO_BATCH_TOKENS = 1024  # the default; metrics answer four times as many at once
ROWS_OF_A_TURN = 64
NAIVE_BATCH = 8
OURS = "sftctl, sorted by length"
ALONE = "transformers, one by one"
BATCHED = f"transformers, batches of {NAIVE_BATCH} in the file's order"

Answering = Callable[[list[list[int]]], list[str]]


def generating(
    alpaca: Path, downloads: Path, num_rows: int, num_tokens: int
) -> tuple[list[list[str]], str]:
    """A row for each way: tokens a second, how many times one by one; and a sentence."""
    file = smollm2_file(downloads)
    tokenizer = load_tokenizer(str(file))
    model = load_model(str(file), tokenizer, 0).eval()
    prompts = prompts_of(alpaca, tokenizer, num_rows)
    ways = answering(model, tokenizer, num_tokens)
    seconds, tokens, texts = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0), {}
    for way in ways.values():  # warms up
        way(prompts[:1])
    for first in range(0, len(prompts), ROWS_OF_A_TURN):
        for name, way in ways.items():
            started = time.perf_counter()
            answers = way(prompts[first : first + ROWS_OF_A_TURN])
            seconds[name] += time.perf_counter() - started
            tokens[name] += sum(len(tokenizer.encode(answer)) for answer in answers)
            texts.setdefault(name, []).extend(answers)
    rates = {name: tokens[name] / seconds[name] for name in ways}
    rows = [[n, f"{rates[n]:.1f}", f"{rates[n] / rates[ALONE]:.2f}"] for n in ways]
    same = sum(a == b for a, b in zip(texts[OURS], texts[ALONE], strict=True))
    return rows, f"{same} of {len(prompts)} answers are those of one by one."


def prompts_of(alpaca: Path, tokenizer: ChatTokenizer, num_rows: int) -> list[list[int]]:
    """The prompts of rows evenly spaced in the file, as token ids."""
    rows = loads(alpaca.read_bytes())
    chosen = [rows[i * len(rows) // num_rows] for i in range(num_rows)]
    texts = ["\n".join(filter(None, (row["instruction"], row.get("input")))) for row in chosen]
    messages = [[{"role": "user", "content": text}] for text in texts]
    return [tokenizer.encode(tokenizer.render(m, None, True)).tolist() for m in messages]


def answering(model: Any, tokenizer: ChatTokenizer, num_tokens: int) -> dict[str, Answering]:
    """The three ways to answer several prompts, by name."""
    sampling, ends = Sampling(num_tokens), stop_ids(model, tokenizer)

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
        output = model.generate(
            **inputs, max_new_tokens=num_tokens, do_sample=False, eos_token_id=ends,
            pad_token_id=tokenizer.hf.pad_token_id,
        )  # fmt: skip
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
