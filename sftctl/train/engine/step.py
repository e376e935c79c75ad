"""One optimizer step: `train_step`, and the three functions that it calls in turn.

The step's loss is the sum of its target tokens' losses over their number, over all ranks.
"""

import math
import time
from dataclasses import dataclass

import torch

from sftctl.config.schedule import get_lr
from sftctl.config.schema import OptimConfig
from sftctl.data.microbatch import StepBatch
from sftctl.data.plan import examples_digest, hash_of
from sftctl.errors import TrainingDiverged
from sftctl.machine import peak_resident_bytes, resident_bytes
from sftctl.metrics import StepMetrics
from sftctl.train.engine.exact_sum import whole_units
from sftctl.train.engine.optim import clip_gradients
from sftctl.train.engine.state import TrainState
from sftctl.world import World, local_part

MAX_OVERFLOWS = 20
"""float16 overflows in a row, each halving the scale and repeating the step, before giving up."""


@dataclass(frozen=True, slots=True)
class StepRules:
    """What an update depends on, apart from the state and the batch."""

    optim: OptimConfig
    seed: int
    total_steps: int
    steps_per_epoch: int
    skips_nonfinite: bool = False  # skip a step whose gradient is not finite; else raise


@dataclass
class _Sums:
    """What the micro-batches of this rank add up to."""

    loss_sum: torch.Tensor  # float64 scalar on the device
    examples_digest: int = 0
    num_tokens: int = 0
    num_padding_tokens: int = 0


@dataclass(frozen=True, slots=True)
class _Gradient:
    """Facts about the gradient that is in the parameters, unscaled and clipped."""

    sums: _Sums
    loss: float  # the step's mean, over all ranks
    norm: float  # L2, before clipping
    num_overflows: int
    problem: str | None  # why it can't be used; None: it can


def train_step(
    state: TrainState, batch: StepBatch, rules: StepRules, world: World, data_wait_s: float
) -> StepMetrics:
    """Make one update; raises TrainingDiverged, with the weights untouched, if it is impossible."""
    started = time.perf_counter()
    learning_rate = get_lr(state.progress.step + 1, rules.total_steps, rules.optim)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate
    sums = accumulate_gradients(state, batch, rules.seed, world)  # forward and backward
    gradient = unscale_and_clip(state, batch, sums, rules, world)
    update_or_skip(state, batch, gradient, rules, world)  # optimizer.step
    digest, num_tokens, num_padding_tokens = _totals(gradient.sums, world)
    state.progress.advance(rules.steps_per_epoch, batch.num_examples, num_tokens)
    return StepMetrics(
        step=state.progress.step,
        epoch=batch.epoch,
        loss=gradient.loss,
        grad_norm=gradient.norm,
        learning_rate=learning_rate,
        num_tokens=num_tokens,
        num_target_tokens=batch.num_target_tokens,
        num_padding_tokens=num_padding_tokens,
        examples_digest=digest,
        step_time_s=time.perf_counter() - started + data_wait_s,
        data_wait_s=data_wait_s,
        memory_bytes=world.max(memory_bytes(world.device)),
        peak_memory_bytes=world.max(peak_memory_bytes(world.device)),
        num_overflows=gradient.num_overflows,
        skipped=gradient.problem,
    )


def accumulate_gradients(state: TrainState, batch: StepBatch, seed: int, world: World) -> _Sums:
    """Run forward and backward; each `.grad` is then the step's, times float16's loss scale."""
    # FSDP averages over ranks, but the loss is a sum over all ranks' target tokens.
    weight = (world.world_size if state.lockstep else 1) / batch.num_target_tokens
    if state.exact is None:
        sums = _forward_and_backward(state, batch, seed, world, weight)
        state.weights.sum_gradients(world)
        return sums
    return state.exact.accumulate(
        lambda: _forward_and_backward(state, batch, seed, world, weight),
        num_micro_batches=batch.num_examples,  # an upper bound: each holds at least one example
        scale=state.scaler.get_scale(),
        world=world,
    )


def _forward_and_backward(
    state: TrainState, batch: StepBatch, seed: int, world: World, weight: float
) -> _Sums:
    """Run every micro-batch of this rank; each target token's loss is multiplied by `weight`."""
    sums = _Sums(torch.zeros((), dtype=torch.float64, device=world.device))
    for micro_batch in batch.micro_batches:
        sums.examples_digest += examples_digest(micro_batch.examples)
        sums.num_tokens += micro_batch.num_tokens
        sums.num_padding_tokens += micro_batch.num_padding_tokens
        on_device = micro_batch.to(world.device)
        # Dropout depends on the step and the micro-batch, not on what was drawn before.
        step = state.progress.step + 1
        torch.manual_seed(hash_of(seed, step, micro_batch.number) >> 1)
        with state.autocast(world.device):
            loss_sum = state.loss_module(*on_device.tensors)
        state.scaler.scale(loss_sum * weight).backward()
        state.weights.collect_gradients()
        if state.exact is not None:
            state.exact.add_gradients()
        sums.loss_sum += whole_units(loss_sum.detach())
    return sums


def unscale_and_clip(
    state: TrainState, batch: StepBatch, sums: _Sums, rules: StepRules, world: World
) -> _Gradient:
    """Divide the gradients by the loss scale and clip them.

    If float16 has overflowed, halve the scale and accumulate again, up to MAX_OVERFLOWS times.
    """
    num_overflows = 0
    while True:
        state.scaler.unscale_(state.optimizer)
        norm = clip_gradients(state.weights.trained, rules.optim.grad_clip or math.inf, world)
        loss = world.sum(sums.loss_sum).item() / batch.num_target_tokens
        problem = _problem(loss, norm)
        has_overflowed = state.scaler.is_enabled() and math.isfinite(loss) and problem is not None
        if not has_overflowed:
            return _Gradient(sums, loss, norm, num_overflows, problem)
        _back_off(state.scaler)
        num_overflows += 1
        if num_overflows == MAX_OVERFLOWS:
            problem = f"float16 overflowed {MAX_OVERFLOWS} times in a row"
            return _Gradient(sums, loss, norm, num_overflows, problem)
        state.weights.clear_gradients()
        sums = accumulate_gradients(state, batch, rules.seed, world)


def _problem(loss: float, norm: float) -> str | None:
    """Why an update is impossible, or None."""
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    return None if math.isfinite(norm) else f"the gradient norm is {norm}"


def _back_off(scaler: torch.amp.GradScaler) -> None:
    """Halve the scale and restart its growth count, as GradScaler does when it skips a step."""
    scaler.update(scaler.get_scale() * scaler.get_backoff_factor())
    scaler.load_state_dict({**scaler.state_dict(), "_growth_tracker": 0})


def update_or_skip(
    state: TrainState, batch: StepBatch, gradient: _Gradient, rules: StepRules, world: World
) -> None:
    """Update the weights; if the gradient can't be used, skip that or raise TrainingDiverged."""
    if gradient.problem is None:
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.weights.publish()
    elif rules.skips_nonfinite and gradient.num_overflows < MAX_OVERFLOWS:
        state.scaler.update(state.scaler.get_scale())  # the next unscale_ needs it
    else:
        raise _diverged(gradient.problem, state, batch, world)
    state.weights.clear_gradients()


def _totals(sums: _Sums, world: World) -> tuple[int, int, int]:
    """Over all ranks: the digest, tokens, padding tokens."""
    digest = sums.examples_digest % (1 << 64)
    signed = digest - (1 << 64) if digest >= 1 << 63 else digest  # int64 wraps as the digest does
    counts = [signed, sums.num_tokens, sums.num_padding_tokens]
    totals = world.sum(torch.tensor(counts, device=world.device)).tolist()
    return totals[0] % (1 << 64), totals[1], totals[2]


def _diverged(what: str, state: TrainState, batch: StepBatch, world: World) -> TrainingDiverged:
    """The error that names what to look at. All ranks call it: they see the same loss and norm."""
    step = state.progress.step + 1
    mine = [index for micro_batch in batch.micro_batches for index in micro_batch.examples]
    examples = sorted(index for part in world.gather(mine) for index in part)
    where = f"step {step} (epoch {batch.epoch}): {what}"
    broken = [name for part in world.gather(_broken_weights(state)) for name in part]
    if broken:
        return TrainingDiverged(
            f"{where}; the weights before the step are not finite: {broken[0]}",
            hint="no example is the cause: `sftctl inspect-ckpt MODEL --tensors` counts NaNs in "
            "the weights that training started from",
        )
    return TrainingDiverged(
        f"{where}; the weights are those of step {step - 1}; "
        f"examples of the step: {', '.join(map(str, examples[:32]))}",
        hint="look at these examples (prepare-data --show), or lower optim.learning_rate",
    )


def _broken_weights(state: TrainState) -> list[str]:
    """Names of parameters that hold a number that is not finite, in this rank's part."""
    named = state.weights.named.items()
    return [name for name, weight in named if not local_part(weight).isfinite().all()]


def peak_memory_bytes(device: torch.device) -> int:
    """On CUDA the peak of allocated memory, else the peak resident size of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return max(peak_resident_bytes(), resident_bytes())  # the system updates its peak late


def memory_bytes(device: torch.device) -> int:
    """On CUDA the memory allocated now, else the resident size of this process now."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return resident_bytes()
