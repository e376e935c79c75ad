"""One optimizer step: `train_step`, and the functions that it calls one after the other.

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
from sftctl.metrics import SourceMetrics, StepMetrics
from sftctl.train.engine.exact_sum import hits_and_entropies, whole_units
from sftctl.train.engine.optim import clip_gradients, step_if_finite
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
class _Outcome:
    """What the host reads of a step, over all ranks."""

    loss: float  # the mean of the step
    norm: float  # the L2 norm of the gradient before clipping
    token_accuracy: float
    entropy: float
    sources: dict[str, SourceMetrics] | None

    @property
    def problem(self) -> str | None:
        """Why the weights were not updated, or None."""
        if not math.isfinite(self.loss):
            return f"the loss is {self.loss}"
        return None if math.isfinite(self.norm) else f"the gradient norm is {self.norm}"

    @property
    def has_overflowed(self) -> bool:
        """Whether float16 may be the cause of the problem."""
        return math.isfinite(self.loss) and not math.isfinite(self.norm)


def train_step(
    state: TrainState, batch: StepBatch, rules: StepRules, world: World, data_wait_s: float
) -> StepMetrics:
    """Train one step, or raise TrainingDiverged and leave the weights unchanged."""
    started = time.perf_counter()
    learning_rate = get_lr(state.progress.step + 1, rules.total_steps, rules.optim)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_factor"]
    num_overflows = 0
    while True:
        sums = accumulate_gradients(state, batch, rules, world)  # forward and backward
        facts = unscale_and_clip(state, batch, sums, rules, world)
        outcome = update_if_finite(state, batch, sums, facts)  # optimizer.step
        if not (state.scaler.is_enabled() and outcome.has_overflowed):
            break
        _back_off(state.scaler)
        num_overflows += 1
        if num_overflows == MAX_OVERFLOWS:
            what = f"float16 overflowed {MAX_OVERFLOWS} times in a row"
            raise _diverged(what, state, batch, world)
    if outcome.problem is not None and not rules.skips_nonfinite:
        raise _diverged(outcome.problem, state, batch, world)
    # GradScaler requires this call before the next `unscale_`. A skipped step keeps the scale.
    state.scaler.update(None if outcome.problem is None else state.scaler.get_scale())
    digest, num_tokens, num_padding_tokens = _totals(sums, world)
    state.progress.advance(rules.steps_per_epoch, batch.num_examples, num_tokens, outcome.sources)
    return StepMetrics(
        step=state.progress.step,
        epoch=batch.epoch,
        loss=outcome.loss,
        grad_norm=outcome.norm,
        learning_rate=learning_rate,
        num_tokens=num_tokens,
        num_target_tokens=batch.num_target_tokens,
        num_padding_tokens=num_padding_tokens,
        examples_digest=digest,
        step_time_s=time.perf_counter() - started + data_wait_s,
        data_wait_s=data_wait_s,
        memory_bytes=world.max(memory_bytes(world.device)),
        peak_memory_bytes=world.max(peak_memory_bytes(world.device)),
        num_overflows=num_overflows,
        skipped=outcome.problem,
        token_accuracy=outcome.token_accuracy,
        entropy=outcome.entropy,
        sources=outcome.sources,
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
) -> torch.Tensor:
    """Divide the gradients by the loss scale and clip them.

    Returns the facts of the step, on the device: loss, norm before clipping, hits, entropies, and
    the sums of the sources.
    """
    state.scaler.unscale_(state.optimizer)
    max_norm = rules.optim.grad_clip or math.inf
    norm = clip_gradients(state.weights.trained, max_norm, world).reshape(1)
    floats = world.sum(sums.floats)
    loss, others = floats[:1] / batch.sum_of_weights, floats[1:]
    sources = [] if sums.sources is None else [sums.sources.total(world)]
    return torch.cat([loss, norm, others, *sources])


def update_if_finite(
    state: TrainState, batch: StepBatch, sums: _Sums, facts: torch.Tensor
) -> _Outcome:
    """Update the weights if loss and norm are finite, and clear the gradients."""
    # On one rank, only this line of a step waits for the device.
    loss, norm, hits, entropies, *sources = step_if_finite(state.optimizer, facts, num_deciding=2)
    state.weights.publish()
    state.weights.clear_gradients()
    num_targets = max(1, batch.num_target_tokens)
    by_source = None if sums.sources is None else sums.sources.metrics(sources)
    return _Outcome(loss, norm, hits / num_targets, entropies / num_targets, by_source)


def _back_off(scaler: torch.amp.GradScaler) -> None:
    """Halve the scale and restart its growth counter, as GradScaler does for a skipped step."""
    scaler.update(scaler.get_scale() * scaler.get_backoff_factor())
    scaler.load_state_dict({**scaler.state_dict(), "_growth_tracker": 0})


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
