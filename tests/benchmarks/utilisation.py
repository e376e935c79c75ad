"""The share of the machine's matrix-product rate that training uses, and a profile.

`python -m tests.benchmarks --only utilisation`: steps of minimind-3 on Alpaca in this process, the
rate of a float32 product measured before and after every step, and a profile of the last one.
"""

import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from sftctl.config.optim import OptimConfig
from sftctl.config.schema import RunConfig, TrainConfig
from sftctl.data.loading.loader import LoaderSettings, StepLoader
from sftctl.data.loading.microbatch import StepBatch
from sftctl.data.step_shape import StepShape
from sftctl.data.store import TokenStore
from sftctl.model.load import load_model
from sftctl.model.onednn import product
from sftctl.model.tokenizer.tokenizer import load_tokenizer
from sftctl.train.engine.build import build_state
from sftctl.train.engine.step import StepRules, train_step
from sftctl.world import ALONE

SIZE = 2048
KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "mkldnn::_linear_pointwise"),
    "attention": ("aten::_scaled_dot_product",),
    "softmax and loss of the logits": ("aten::_log_softmax", "aten::nll_loss"),
    "AdamW": ("aten::_fused_adamw",),
    "sums of gradients": ("aten::add_",),
}


def utilisation(store_path: Path, batch_size: int, steps: int) -> tuple[list[list[str]], str]:
    """Rows of the profile, and a sentence with the share."""
    store = TokenStore.open(store_path)
    tokenizer = load_tokenizer(str(store_path / "tokenizer"))
    train = TrainConfig(dtype="float32", batch_size=batch_size)
    config = RunConfig(optim=OptimConfig(learning_rate=1e-3), train=train)
    state = build_state(load_model("minimind-3", tokenizer, 0), config, ALONE, 1024)
    shape = StepShape(
        seed=0, global_batch_size=batch_size, micro_batch_tokens=int(train.micro_batch_tokens),
        cut_for_ranks=1, rank=0, world_size=1,
    )  # fmt: skip
    rules = StepRules(config.optim, 0, steps + 2, 1000)
    batches = StepLoader(store, shape, LoaderSettings()).steps(0)
    products: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]
    products = {"torch's": torch.matmul, "oneDNN's": product}
    rates: dict[str, list[float]] = {name: [] for name in products}
    achieved = []
    train_step(state, next(batches), rules, ALONE, 0.0)  # warms up
    for _ in range(steps):
        batch = next(batches)
        before = [product_rate(multiply) for multiply in products.values()]
        metrics = train_step(state, batch, rules, ALONE, 0.0)
        after = [product_rate(multiply) for multiply in products.values()]
        for name, one, other in zip(products, before, after, strict=True):
            rates[name].append((one + other) / 2)
        achieved.append(operations(state.loss_module.model, store, batch) / metrics.step_time_s)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        train_step(state, next(batches), rules, ALONE, 0.0)
    sentence = f"batches of {batch_size}: {statistics.median(achieved) / 1e9:.0f} GFLOP/s"
    for name, measured in rates.items():
        used = [done / rate for done, rate in zip(achieved, measured, strict=True)]
        sentence += (
            f"; {statistics.median(used):.2f} ({min(used):.2f} to {max(used):.2f}) of {name} "
            f"product, {statistics.median(measured) / 1e9:.0f} GFLOP/s"
        )
    return shares(profiled), sentence


def product_rate(multiply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> float:
    """Operations a second of a square float32 product on all threads, as the median of three."""
    one = torch.randn(SIZE, SIZE)
    rates = []
    for _ in range(4):
        started = time.perf_counter()
        multiply(one, one)
        rates.append(2 * SIZE**3 / (time.perf_counter() - started))
    return statistics.median(rates[1:])


def operations(model: Any, store: TokenStore, batch: StepBatch) -> float:
    """The operations of all matrix products that real tokens need, forward and backward.

    They are 6 for each weight and token (the head's only at target tokens). Causal attention's two
    products take 12 for each pair of tokens and element, over half of the square.
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


def shares(profiled: Any, kinds: dict[str, tuple[str, ...]] = KINDS) -> list[list[str]]:
    """Shares of a step's time, by kind of work; the first kind that fits counts."""
    times: Counter[str] = Counter()
    for event in profiled.key_averages():
        kind = next((k for k, names in kinds.items() if event.key.startswith(names)), "the rest")
        times[kind] += event.self_cpu_time_total
    total = times.total()
    return [[kind, f"{share / total:.1%}"] for kind, share in times.most_common()]
