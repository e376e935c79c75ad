"""Estimate how long a run takes, before it starts."""

import time
from copy import deepcopy
from dataclasses import replace
from itertools import count

import torch

from sftctl.data.loading.loader import LoaderSettings, StepLoader
from sftctl.data.plan import steps_per_epoch
from sftctl.data.step_shape import step_shape
from sftctl.model.load import from_configuration
from sftctl.train.engine.build import build_state
from sftctl.train.engine.flops import matmul_flops_per_s
from sftctl.train.engine.state import COMPUTE_DTYPES
from sftctl.train.engine.step import StepRules, train_step
from sftctl.train.preflight.proposal import Proposal
from sftctl.train.stop import StopRequest
from sftctl.world import World

_USUAL_MFU = 0.4
"""Training on a CPU reaches this share of the speed of matrix products (docs/benchmarks.md)."""

_MEASURED_S = 0.3  # a busy machine interrupts most products of a shorter measurement
_UPDATE_BYTES = 56  # that AdamW, clipping and zeroing read and write for each trained parameter
_PADDED_TO = 128  # tokens; a pass is padded to a multiple of this, so by half of it on average
_SMALL = 30_000_000  # parameters
"""Steps of a smaller model are timed, because matrix products are only a part of them."""
_SHORT = 5e10  # operations; a step with more operations is not timed
_TRIED_S, _TRIED_STEPS = 0.5, 8


def run_time_s(
    proposal: Proposal, world: World, stop: StopRequest, num_ranks: int = 1
) -> float | None:
    """The seconds that all steps and evaluations take, roughly. None: not known for this model.

    For a small model, a few steps with random weights are timed. For a larger model, the operations
    of all tokens are divided by the speed of this device, and the time of the updates is added.
    `_USUAL_MFU` allows for attention, loading and saves. An evaluated token counts a third of a
    trained token. Ranks on a CPU share its cores.
    """
    train, inputs = proposal.config.train, proposal.inputs
    splits = inputs.train.manifest.splits
    per_epoch = steps_per_epoch(inputs.num_planned, train.global_batch_size)
    steps = train.total_steps(per_epoch)
    num_epochs = steps / per_epoch * inputs.num_planned / max(1, len(inputs.train))
    evaluations = 2 + steps // (train.eval_interval or 1 << 62)
    passes = {"train": num_epochs, "validation": evaluations / 3}
    body, head = proposal.flops_per_token
    speed = 1 if world.device.type == "cpu" else num_ranks
    dtype = COMPUTE_DTYPES[train.dtype]
    rate = matmul_flops_per_s(world.device, dtype, _MEASURED_S) * _USUAL_MFU * speed
    if not body or not rate:
        return None
    flops = sum(
        times * (body * splits[name].num_tokens + head * splits[name].num_target_tokens)
        for name, times in passes.items()
    )
    if world.world_size > 1 or not _is_tried(proposal, flops / steps):
        a_step = num_epochs * splits["train"].num_tokens / steps
        longer = max(_PADDED_TO, a_step + _PADDED_TO / 2 * -(-a_step // train.pass_tokens)) / a_step
        return flops * longer / rate + steps * _update_s(proposal.num_trained, world.device)
    num_tokens = sum(times * splits[name].num_tokens for name, times in passes.items())
    # The run must draw the same numbers with and without this estimate.
    with torch.random.fork_rng(devices=[]):
        token_s = _tried_token_s(proposal, world, stop)
    return num_tokens * token_s / speed


def _update_s(num_trained: int, device: torch.device) -> float:
    """Seconds of an update on a CPU, from the speed of its memory; 0 on a GPU."""
    if device.type != "cpu":
        return 0.0
    buffer, times = torch.zeros(1 << 23), []
    for _ in range(5):
        started = time.perf_counter()
        buffer.mul_(1.0)
        times.append(time.perf_counter() - started)
    bytes_per_s = 2 * buffer.nbytes / min(times)
    return num_trained * _UPDATE_BYTES / bytes_per_s


def _is_tried(proposal: Proposal, step_flops: float) -> bool:
    """Whether to time steps: there are no errors, the model is small, and a step is short."""
    config = proposal.config
    is_plain = not config.adapter.lora and not config.train.compile
    begins = all(finding.level != "error" for finding in proposal.findings)
    return is_plain and begins and proposal.num_parameters < _SMALL and step_flops < _SHORT


def _tried_token_s(proposal: Proposal, world: World, stop: StopRequest) -> float:
    """Seconds per token, timed in a few steps with a learning rate of 0."""
    config, inputs = proposal.config, proposal.inputs
    model = from_configuration(deepcopy(proposal.model_config))
    state = build_state(model, config, world, int(inputs.train.lengths.max()))
    shape = step_shape(config.train, rows_alone=state.why_rows_alone is not None)
    loader = StepLoader(inputs.train, shape, LoaderSettings(), inputs.mixture)
    per_epoch = steps_per_epoch(inputs.num_planned, shape.global_batch_size)
    optim = replace(config.optim, learning_rate=0.0)
    rules = StepRules(optim, config.train.seed, _TRIED_STEPS, per_epoch, mixture=inputs.mixture)
    started, tried = time.perf_counter(), []
    for batch in (batch for epoch in count() for batch in loader.steps(epoch)):
        stop.check()
        tried.append(train_step(state, batch, rules, world, 0.0))
        is_long = time.perf_counter() - started > _TRIED_S and len(tried) > 1
        if is_long or len(tried) == _TRIED_STEPS:
            break
    later = tried[1:]  # the first step is a warm-up
    return sum(one.step_time_s for one in later) / sum(one.num_tokens for one in later)
