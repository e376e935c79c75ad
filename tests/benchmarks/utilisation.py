"""How much of the machine's matrix-product rate training uses, and what takes the rest.

`python -m tests.benchmarks --only utilisation`: steps of minimind-3 on Alpaca in this process, the
rate of a float32 product measured before every step, and a profile of the last one.
"""

import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from sftctl.config.schema import OptimConfig, RunConfig, TrainConfig
from sftctl.data.loader import LoaderSettings, StepLoader, StepShape
from sftctl.data.microbatch import StepBatch
from sftctl.data.store import TokenStore
from sftctl.model.load import load_model
from sftctl.model.tokenizer import load_tokenizer
from sftctl.train.state import build_state
from sftctl.train.step import StepRules, train_step
from sftctl.world import ALONE

SIZE = 2048
KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm"),
    "attention": ("aten::_scaled_dot_product",),
    "softmax and loss of the logits": ("aten::_log_softmax", "aten::nll_loss"),
    "AdamW": ("aten::_fused_adamw",),
    "sums of gradients": ("aten::add_",),
}


def utilisation(store_path: Path, batch_size: int, steps: int) -> tuple[list[list[str]], str]:
    """Rows of the profile, and a sentence with the utilisation."""
    store = TokenStore.open(store_path)
    tokenizer = load_tokenizer(str(store_path / "tokenizer"))
    train = TrainConfig(dtype="float32", batch_size=batch_size)
    config = RunConfig(optim=OptimConfig(learning_rate=1e-3), train=train)
    state = build_state(load_model("minimind-3", tokenizer, 0), config, ALONE)
    shape = StepShape(
        seed=0, global_batch_size=batch_size, micro_batch_tokens=int(train.micro_batch_tokens),
        cut_for_ranks=1, rank=0, world_size=1,
    )  # fmt: skip
    rules = StepRules(config.optim, 0, steps + 2, 1000)
    batches = StepLoader(store, shape, LoaderSettings()).steps(0)
    used, rates, achieved = [], [], []
    train_step(state, next(batches), rules, ALONE, 0.0)  # warms up
    for _ in range(steps):
        batch = next(batches)
        rate = product_rate()
        metrics = train_step(state, batch, rules, ALONE, 0.0)
        rate = (rate + product_rate()) / 2
        done = operations(state.loss_module.model, store, batch) / metrics.step_time_s
        used.append(done / rate)
        rates.append(rate)
        achieved.append(done)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        train_step(state, next(batches), rules, ALONE, 0.0)
    sentence = (
        f"batches of {batch_size}: {statistics.median(used):.2f} of the product rate "
        f"({min(used):.2f} to {max(used):.2f}): {statistics.median(achieved) / 1e9:.0f} of "
        f"{statistics.median(rates) / 1e9:.0f} GFLOP/s"
    )
    return shares(profiled), sentence


def product_rate() -> float:
    """Operations a second of a square float32 product on all threads; the median of three."""
    one = torch.randn(SIZE, SIZE)
    rates = []
    for _ in range(4):
        started = time.perf_counter()
        one @ one
        rates.append(2 * SIZE**3 / (time.perf_counter() - started))
    return statistics.median(rates[1:])


def operations(model: Any, store: TokenStore, batch: StepBatch) -> float:
    """Of the products that real tokens need, forward and backward: 6 a weight, the head's at target
    tokens alone; and causal attention's two products, 12 a pair and number, half of the square.
    """
    config = model.config
    head = model.get_output_embeddings().weight
    body = sum(p.numel() for p in model.parameters() if p.dim() == 2) - head.numel()
    examples = [index for rows in batch.micro_batches for index in rows.examples]
    lengths = store.lengths[examples].astype(float)
    width = config.num_attention_heads * config.head_dim
    attention = 12 * config.num_hidden_layers * width * (lengths**2).sum() / 2
    products = 6 * body * lengths.sum() + 6 * head.numel() * batch.num_target_tokens
    return float(products + attention)


def shares(profiled: Any) -> list[list[str]]:
    """Of the time of a step, by kind of work."""
    times: Counter[str] = Counter()
    for event in profiled.key_averages():
        kind = next((k for k, names in KINDS.items() if event.key.startswith(names)), "the rest")
        times[kind] += event.self_cpu_time_total
    total = times.total()
    return [[kind, f"{share / total:.1%}"] for kind, share in times.most_common()]
