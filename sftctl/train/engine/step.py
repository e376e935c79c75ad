"""One optimizer step: `train_step`, and the three functions that it calls one after the other.

The loss of a step is the weighted mean of the losses of its target tokens, over all ranks. Without
weights in the data, every weight is 1.
"""

import math
import time
from dataclasses import dataclass

import torch

from sftctl.config.optim import OptimConfig
from sftctl.config.schedule import get_lr
from sftctl.data.loading.microbatch import StepBatch
from sftctl.data.mixture import Mixture
from sftctl.data.plan import examples_digest, hash_of
from sftctl.errors import TrainingDiverged
from sftctl.machine import peak_resident_bytes, resident_bytes
from sftctl.metrics import StepMetrics
from sftctl.train.engine.exact_sum import hits_and_entropies, whole_units
from sftctl.train.engine.optim import clip_gradients
from sftctl.train.engine.source_sums import SourceSums
from sftctl.train.engine.state import TrainState
from sftctl.world import World, exact_dtype, local_part

MAX_OVERFLOWS = 20
"""The run ends after this many float16 overflows in a row. After each, the loss scale is halved and
the step is repeated.
"""


@dataclass(frozen=True, slots=True)
class StepRules:
    """The settings that an update needs, besides the state and the batch."""

    optim: OptimConfig
    seed: int
    total_steps: int
    steps_per_epoch: int
    # Skip the update if the gradient is not finite; False: raise an error.
    skips_nonfinite: bool = False
    mixture: Mixture | None = None  # None: the sources have no names


@dataclass
class _Sums:
    """The sums over the micro-batches of this rank."""

    floats: torch.Tensor  # (3,) float64 on the device: losses, hits, entropies of the targets
    examples_digest: int = 0
    num_tokens: int = 0
    num_padding_tokens: int = 0
    sources: SourceSums | None = None  # None: the sources have no names


@dataclass(frozen=True, slots=True)
class _Gradient:
    """Facts about the gradients, after they were unscaled and clipped."""

    sums: _Sums
    loss: float  # the mean of the step, over all ranks
    norm: float  # the L2 norm before clipping
    token_accuracy: float
    entropy: float
    num_overflows: int
    problem: str | None  # why the gradients can't be used; None: they can


def train_step(
    state: TrainState, batch: StepBatch, rules: StepRules, world: World, data_wait_s: float
) -> StepMetrics:
    """Train one step, or raise TrainingDiverged and leave the weights unchanged."""
    started = time.perf_counter()
    learning_rate = get_lr(state.progress.step + 1, rules.total_steps, rules.optim)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_factor"]
    sums = accumulate_gradients(state, batch, rules, world)  # forward and backward
    gradient = unscale_and_clip(state, batch, sums, rules, world)
    update_or_skip(state, batch, gradient, rules, world)  # optimizer.step
    digest, num_tokens, num_padding_tokens = _totals(gradient.sums, world)
    sources = gradient.sums.sources.total(world) if gradient.sums.sources is not None else None
    state.progress.advance(rules.steps_per_epoch, batch.num_examples, num_tokens, sources)
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
        token_accuracy=gradient.token_accuracy,
        entropy=gradient.entropy,
        sources=sources,
    )


def accumulate_gradients(
    state: TrainState, batch: StepBatch, rules: StepRules, world: World
) -> _Sums:
    """Run forward and backward. Each `.grad` is then the step's gradient times the loss scale."""
    # FSDP divides the sum over ranks by the number of ranks. This factor undoes the division.
    weight = (world.world_size if state.is_sharded else 1) / batch.sum_of_weights
    if state.exact is None:
        sums = _forward_and_backward(state, batch, rules, world, weight)
        state.weights.sum_gradients(world)
        return sums
    return state.exact.accumulate(
        lambda: _forward_and_backward(state, batch, rules, world, weight),
        num_micro_batches=batch.num_examples,  # each micro-batch has an example or more
        scale=state.scaler.get_scale(),
        world=world,
    )


def _forward_and_backward(
    state: TrainState, batch: StepBatch, rules: StepRules, world: World, weight: float
) -> _Sums:
    """Run every micro-batch of this rank.

    The loss of each target token is multiplied by `weight`.
    """
    sums = _Sums(torch.zeros(3, dtype=exact_dtype(world.device), device=world.device))
    total_weight = max(batch.sum_of_weights, float(batch.num_target_tokens))
    if rules.mixture is not None:
        sums.sources = SourceSums(rules.mixture, world.device, total_weight)
    for micro_batch in batch.micro_batches:
        sums.examples_digest += examples_digest(micro_batch.examples)
        sums.num_tokens += micro_batch.num_tokens
        sums.num_padding_tokens += micro_batch.num_padding_tokens
        on_device = micro_batch.to(world.device)
        # Dropout must depend only on step and micro-batch, not on random numbers drawn before.
        step = state.progress.step + 1
        torch.manual_seed(hash_of(rules.seed, step, micro_batch.number) >> 1)
        with state.autocast(world.device):
            loss_sum = state.loss_module(*on_device.tensors, longest_row=on_device.longest_row)
        state.scaler.scale(loss_sum * weight).backward()
        state.weights.collect_gradients()
        if state.exact is not None:
            state.exact.add_gradients()
        facts = state.loss_module.targets
        assert facts is not None
        sums.floats[0] += whole_units(loss_sum.detach(), total_weight)
        sums.floats[1:] += hits_and_entropies(facts, on_device.target_ids, total_weight)
        if sums.sources is not None and micro_batch.examples:
            sums.sources.add(on_device, facts)
    return sums


def unscale_and_clip(
    state: TrainState, batch: StepBatch, sums: _Sums, rules: StepRules, world: World
) -> _Gradient:
    """Divide the gradients by the loss scale and clip them.

    If float16 has overflowed, halve the scale and run forward and backward again, up to
    MAX_OVERFLOWS times.
    """
    num_overflows = 0
    while True:
        state.scaler.unscale_(state.optimizer)
        max_norm = rules.optim.grad_clip or math.inf
        norm_on_device = clip_gradients(state.weights.trained, max_norm, world).reshape(1)
        # On one rank without a mixture, only this line of a step waits for the device.
        found = torch.cat([world.sum(sums.floats), norm_on_device]).tolist()
        loss_sum, hits, entropies, norm = found
        loss, num_targets = loss_sum / batch.sum_of_weights, max(1, batch.num_target_tokens)
        facts = loss, norm, hits / num_targets, entropies / num_targets
        problem = _problem(loss, norm)
        has_overflowed = state.scaler.is_enabled() and math.isfinite(loss) and problem is not None
        if not has_overflowed:
            return _Gradient(sums, *facts, num_overflows, problem)
        _back_off(state.scaler)
        num_overflows += 1
        if num_overflows == MAX_OVERFLOWS:
            problem = f"float16 overflowed {MAX_OVERFLOWS} times in a row"
            return _Gradient(sums, *facts, num_overflows, problem)
        state.weights.clear_gradients()
        sums = accumulate_gradients(state, batch, rules, world)


def _problem(loss: float, norm: float) -> str | None:
    """The reason why no update is possible, or None."""
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    return None if math.isfinite(norm) else f"the gradient norm is {norm}"


def _back_off(scaler: torch.amp.GradScaler) -> None:
    """Halve the scale and restart its growth counter, as GradScaler does for a skipped step."""
    scaler.update(scaler.get_scale() * scaler.get_backoff_factor())
    scaler.load_state_dict({**scaler.state_dict(), "_growth_tracker": 0})


def update_or_skip(
    state: TrainState, batch: StepBatch, gradient: _Gradient, rules: StepRules, world: World
) -> None:
    """Update the weights. If the gradient can't be used, skip the update or raise an error."""
    if gradient.problem is None:
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.weights.publish()
    elif rules.skips_nonfinite and gradient.num_overflows < MAX_OVERFLOWS:
        # GradScaler requires this call before the next `unscale_`.
        state.scaler.update(state.scaler.get_scale())
    else:
        raise _diverged(gradient.problem, state, batch, world)
    state.weights.clear_gradients()


def _totals(sums: _Sums, world: World) -> tuple[int, int, int]:
    """The digest, the tokens and the padding tokens of the step, summed over all ranks."""
    digest = sums.examples_digest % (1 << 64)
    # As int64, which wraps around like the digest.
    signed = digest - (1 << 64) if digest >= 1 << 63 else digest
    signed, num_tokens, num_padding_tokens = world.sum_counts(
        signed, sums.num_tokens, sums.num_padding_tokens
    )
    return signed % (1 << 64), num_tokens, num_padding_tokens


def _diverged(what: str, state: TrainState, batch: StepBatch, world: World) -> TrainingDiverged:
    """The error for a step that diverged. All ranks call this with the same `what`."""
    step = state.progress.step + 1
    mine = [index for micro_batch in batch.micro_batches for index in micro_batch.examples]
    examples = sorted(index for part in world.gather(mine) for index in part)
    where = f"step {step} (epoch {batch.epoch + 1}): {what}"
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
    """The parameters that are not finite in this rank's part, by name."""
    named = state.weights.named.items()
    return [name for name, weight in named if not local_part(weight).isfinite().all()]


def peak_memory_bytes(device: torch.device) -> int:
    """The peak of allocated memory on CUDA, else the peak resident size of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return max(peak_resident_bytes(), resident_bytes())  # the system updates its peak with a delay


def memory_bytes(device: torch.device) -> int:
    """The allocated memory on CUDA, else the resident size of this process."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return resident_bytes()
