"""One optimizer step: the sum of its target tokens' losses over their number, over all ranks."""

import math
import resource
import time
from dataclasses import dataclass

import torch

from sftctl.config.schedule import get_lr
from sftctl.config.schema import OptimConfig
from sftctl.data.microbatch import StepBatch
from sftctl.data.plan import examples_digest, hash_of
from sftctl.errors import TrainingDiverged
from sftctl.metrics import StepMetrics
from sftctl.train.engine.exact_sum import whole_units
from sftctl.train.engine.optim import clip_gradients
from sftctl.train.engine.state import TrainState
from sftctl.world import World, local_part

MAX_OVERFLOWS = 20
"""float16 overflows in a row, each halving the scale and repeating the step, before giving up."""


@dataclass(frozen=True, slots=True)
class StepRules:
    """What decides an update besides the state and the batch."""

    optim: OptimConfig
    seed: int
    total_steps: int
    steps_per_epoch: int
    skips_nonfinite: bool = False  # True: a step without a usable gradient updates nothing


@dataclass
class _Tally:
    """What this rank's micro-batches add up to."""

    loss_sum: torch.Tensor  # float64 scalar on the device
    examples_digest: int = 0
    num_tokens: int = 0
    num_padding_tokens: int = 0


@dataclass(frozen=True, slots=True)
class _Gradient:
    """The step's gradient, unscaled and clipped, is in the parameters; what is known of it."""

    tally: _Tally
    loss: float  # the mean of the whole step
    norm: float  # before clipping
    num_overflows: int
    problem: str | None  # why it can't be used


def train_step(
    state: TrainState, batch: StepBatch, rules: StepRules, world: World, data_wait_s: float
) -> StepMetrics:
    """Forward, backward, clip, update; raises TrainingDiverged before the weights are touched."""
    started = time.perf_counter()
    step = state.progress.step + 1
    learning_rate = get_lr(step, rules.total_steps, rules.optim)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate
    gradient = _gradient(state, batch, rules, step, world)
    if gradient.problem is None:
        state.scaler.step(state.optimizer)
        state.scaler.update()
    elif rules.skips_nonfinite and gradient.num_overflows < MAX_OVERFLOWS:
        state.scaler.update(state.scaler.get_scale())  # it must forget what it has unscaled
    else:
        raise _diverged(gradient.problem, state, batch, world)
    state.optimizer.zero_grad(set_to_none=True)
    totals = world.sum(_counts(gradient.tally, world.device)).tolist()
    metrics = StepMetrics(
        step=step,
        epoch=batch.epoch,
        loss=gradient.loss,
        grad_norm=gradient.norm,
        learning_rate=learning_rate,
        num_tokens=totals[1],
        num_target_tokens=batch.num_target_tokens,
        num_padding_tokens=totals[2],
        examples_digest=totals[0] % (1 << 64),
        step_time_s=time.perf_counter() - started + data_wait_s,
        data_wait_s=data_wait_s,
        peak_memory_bytes=world.max(peak_memory_bytes(world.device)),
        num_overflows=gradient.num_overflows,
        skipped=gradient.problem,
    )
    state.progress.advance(rules.steps_per_epoch, batch.num_examples, metrics.num_tokens)
    return metrics


def _gradient(
    state: TrainState, batch: StepBatch, rules: StepRules, step: int, world: World
) -> _Gradient:
    """Make the step's gradient; where float16 overflows, again with half the scale."""
    num_overflows = 0
    while True:
        tally = _gradients(state, batch, rules.seed, step, world)
        state.scaler.unscale_(state.optimizer)
        norm = clip_gradients(state.loss_module, rules.optim.grad_clip or math.inf, world)
        loss = world.sum(tally.loss_sum).item() / batch.num_target_tokens
        problem = _problem(loss, norm)
        is_overflow = math.isfinite(loss) and problem is not None and state.scaler.is_enabled()
        if not is_overflow:
            return _Gradient(tally, loss, norm, num_overflows, problem)
        _back_off(state.scaler)
        num_overflows += 1
        if num_overflows == MAX_OVERFLOWS:
            problem = f"float16 overflowed {MAX_OVERFLOWS} times in a row"
            return _Gradient(tally, loss, norm, num_overflows, problem)
        state.optimizer.zero_grad(set_to_none=True)


def _problem(loss: float, norm: float) -> str | None:
    """Why an update is impossible, or None."""
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    return None if math.isfinite(norm) else f"the gradient norm is {norm}"


def _back_off(scaler: torch.amp.GradScaler) -> None:
    """What GradScaler does by itself when it skips a step, which ours repeats instead."""
    scaler.update(scaler.get_scale() * scaler.get_backoff_factor())
    scaler.load_state_dict({**scaler.state_dict(), "_growth_tracker": 0})


def _gradients(state: TrainState, batch: StepBatch, seed: int, step: int, world: World) -> _Tally:
    """Run this rank's micro-batches: afterwards the gradients are those of the step."""
    if state.exact is None:
        # DDP and FSDP average over ranks; the loss is a sum over all ranks' target tokens.
        weight = world.world_size / batch.num_target_tokens
        return _run_micro_batches(state, batch, seed, step, world, weight)
    weight = 1 / batch.num_target_tokens
    return state.exact.of_step(
        lambda: _run_micro_batches(state, batch, seed, step, world, weight),
        num_micro_batches=batch.num_examples,  # each holds one at least
        scale=state.scaler.get_scale(),
        world=world,
    )


def _run_micro_batches(
    state: TrainState, batch: StepBatch, seed: int, step: int, world: World, weight: float
) -> _Tally:
    """Forward and backward, the loss of each target token times `weight`."""
    tally = _Tally(torch.zeros((), dtype=torch.float64, device=world.device))
    for micro_batch in batch.micro_batches:
        tally.examples_digest += examples_digest(micro_batch.examples)
        tally.num_tokens += micro_batch.num_tokens
        tally.num_padding_tokens += micro_batch.num_padding_tokens
        on_device = micro_batch.to(world.device)
        # Dropout and the like depend on the step and the cut, not on what was drawn before.
        torch.manual_seed(hash_of(seed, step, micro_batch.number) >> 1)
        with state.exchange_gradients(now=micro_batch is batch.micro_batches[-1]):
            with state.autocast(world.device):
                loss_sum = state.module(*on_device.tensors)
            state.scaler.scale(loss_sum * weight).backward()
        if state.exact is not None:
            state.exact.take()
        tally.loss_sum += whole_units(loss_sum.detach())
    return tally


def _counts(tally: _Tally, device: torch.device) -> torch.Tensor:
    """(3,) int64: digest, tokens, padding; int64 sums wrap modulo 2^64, as the digest does."""
    digest = tally.examples_digest % (1 << 64)
    signed = digest - (1 << 64) if digest >= 1 << 63 else digest
    return torch.tensor([signed, tally.num_tokens, tally.num_padding_tokens], device=device)


def _diverged(what: str, state: TrainState, batch: StepBatch, world: World) -> TrainingDiverged:
    """All ranks see the same loss and norm, so all come here together."""
    step = state.progress.step + 1
    mine = [index for micro_batch in batch.micro_batches for index in micro_batch.examples]
    examples = sorted(index for part in world.gather(mine) for index in part)
    where = f"step {step} (epoch {batch.epoch}): {what}"
    broken = [name for part in world.gather(_broken_weights(state)) for name in part]
    if broken:
        return TrainingDiverged(
            f"{where}; the weights that it began with are not finite: {broken[0]}",
            hint="no example is to blame: `sftctl inspect-ckpt MODEL --tensors` counts NaNs in "
            "the weights that training began with",
        )
    return TrainingDiverged(
        f"{where}; the weights are those of step {step - 1}; "
        f"examples of the step: {', '.join(map(str, examples[:32]))}",
        hint="look at these examples (prepare-data --show), or lower optim.learning_rate",
    )


def _broken_weights(state: TrainState) -> list[str]:
    """Names of parameters with a number that is not finite, in this rank's share."""
    parameters = state.loss_module.model.named_parameters()
    return [name for name, weight in parameters if not local_part(weight).isfinite().all()]


def peak_memory_bytes(device: torch.device) -> int:
    """CUDA's peak, or the largest resident size of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
