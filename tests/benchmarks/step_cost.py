"""What a training step costs in time, processor time and memory, on a busy machine too.

`python -m tests.benchmarks.step_cost STORE --model M --dtype D --tokens N` prints one JSON line.
Processor time hardly depends on what else runs. `--width W` draws a model of that width, four
layers deep, in place of `--model`. `measured_ratio` is the share of token accuracy and entropy in
the processor time of a step: what computes them from the logits is timed by itself. `--profile`
adds the shares of one more step by kind of work, by torch's profiler.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from sftctl.config.optim import OptimConfig
from sftctl.config.schema import RunConfig, TrainConfig
from sftctl.data.loading.loader import LoaderSettings, StepLoader
from sftctl.data.step_shape import step_shape
from sftctl.data.store import TokenStore
from sftctl.machine import peak_resident_bytes
from sftctl.model.load import from_configuration, load_model
from sftctl.model.loss import chunk_rows
from sftctl.model.presets import preset_config
from sftctl.model.tokenizer.tokenizer import ChatTokenizer, load_tokenizer
from sftctl.openmp import threads_give_way
from sftctl.train.engine.build import build_state
from sftctl.train.engine.step import StepRules, train_step
from sftctl.world import ALONE
from tests.benchmarks.utilisation import shares

KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "mkldnn::_linear_pointwise"),
    "attention, backward": ("aten::_scaled_dot_product_flash_attention_for_cpu_backward",),
    "attention, forward": ("aten::_scaled_dot_product",),
    "copies and casts": ("aten::copy_", "aten::cat"),
    "sums of gradients": ("aten::add_",),
    "zeros": ("aten::fill_", "aten::zero_"),
    "softmax and loss of the logits": ("aten::_log_softmax", "aten::exp", "aten::amax"),
    "AdamW": ("aten::_fused_adamw",),
    "norm of the gradient": ("aten::linalg_vector_norm",),
}
"""The rest is elementwise work: norms, rotations, activations."""


def main() -> None:
    """Train one step to warm up, then `--steps` steps that count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("--model", default="minimind-3")
    parser.add_argument("--width", type=int)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    with threads_give_way():
        print(json.dumps(measured(options)))


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """What the steps cost."""
    store, tokenizer = TokenStore.open(options.store), load_tokenizer(f"{options.store}/tokenizer")
    train = TrainConfig(
        dtype=options.dtype, batch_size=options.batch_size, micro_batch_tokens=options.tokens
    )
    config = RunConfig(optim=OptimConfig(learning_rate=1e-3), train=train)
    state = build_state(model_of(options, tokenizer), config, ALONE, int(store.lengths.max()))
    rules = StepRules(config.optim, 0, options.steps + 2, 10**6)
    batches = StepLoader(store, step_shape(train), LoaderSettings()).steps(0)
    train_step(state, next(batches), rules, ALONE, 0.0)
    began, used = time.perf_counter(), sum(os.times()[:2])
    steps = [train_step(state, next(batches), rules, ALONE, 0.0) for _ in range(options.steps)]
    seconds, used = time.perf_counter() - began, sum(os.times()[:2]) - used
    num_tokens = sum(step.num_tokens for step in steps)
    added = sum(step.num_padding_tokens for step in steps)
    result: dict[str, Any] = {
        "real_tokens_per_s": num_tokens / seconds,
        "real_tokens_per_cpu_s": num_tokens / used,
        "added_tokens_ratio": added / (num_tokens + added),
        "peak_bytes": peak_resident_bytes(),
    }
    num_targets = sum(step.num_target_tokens for step in steps)
    result["measured_ratio"] = facts_cpu_seconds(num_targets, tokenizer.vocab_size) / used
    if options.profile:
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            train_step(state, next(batches), rules, ALONE, 0.0)
        result["shares"] = dict(shares(profiled, KINDS))
    return result


def facts_cpu_seconds(num_targets: int, vocabulary: int) -> float:
    """Processor time of what `loss.py` adds to a step for the token accuracy and the entropy."""
    rows = chunk_rows(vocabulary)
    logits = torch.randn(rows, vocabulary)
    log_probabilities, used = logits.log_softmax(dim=-1), 0.0
    for number in range(1 + -(-num_targets // rows)):  # the first one warms up
        began = time.process_time()
        log_probabilities.amax(1)
        logits.mul_(log_probabilities).sum(1)
        used += (time.process_time() - began) * (number > 0)
    return used * num_targets / (rows * -(-num_targets // rows))


def model_of(options: argparse.Namespace, tokenizer: ChatTokenizer) -> Any:
    """The model of `--model`, or the one of `--width`."""
    if options.width is None:
        return load_model(options.model, tokenizer, 0)
    config = preset_config("small", tokenizer.vocab_size)
    heads = options.width // 64
    sizes = {"hidden_size": options.width, "intermediate_size": 3 * options.width}
    config.update(sizes | {"num_attention_heads": heads, "num_key_value_heads": heads // 2})
    return from_configuration(config)


if __name__ == "__main__":
    main()
