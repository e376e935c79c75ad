"""Try the largest micro-batch before the first step, to find out whether the memory suffices."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sftctl.data.loading.loader import longest_micro_batch
from sftctl.data.loading.microbatch import Examples, MicroBatch
from sftctl.data.step_shape import StepShape
from sftctl.errors import ConfigError
from sftctl.tracking import status
from sftctl.train.engine.compiled import is_compiled
from sftctl.train.engine.state import TrainState
from sftctl.world import World


def rehearse(state: TrainState, store: Examples, shape: StepShape, world: World) -> None:
    """Run the largest micro-batch forward and backward. The state does not change.

    Raises ConfigError if the memory does not suffice.
    """
    compiles = is_compiled(state.loss_module)
    status.doing("compiling the layers (minutes)" if compiles else "trying the largest micro-batch")
    batch = longest_micro_batch(store, shape).to(world.device)
    torch.manual_seed(0)
    try:
        with state.autocast(world.device):
            loss_sum = state.loss_module(*batch.tensors, longest_row=batch.longest_row)
        (loss_sum * 0).backward()
        state.weights.collect_gradients()
    except (torch.OutOfMemoryError, RuntimeError) as problem:
        if not _is_out_of_memory(problem):
            raise
        raise _too_large(batch, shape.micro_batch_tokens) from problem
    finally:
        state.weights.clear_gradients()
        if world.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(world.device)


@contextmanager
def out_of_memory_as_error(micro_batch_tokens: int) -> Iterator[None]:
    """If memory runs out during a run, raise a ConfigError that says what to do."""
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as problem:
        if not _is_out_of_memory(problem):
            raise
        raise ConfigError(
            f"train.micro_batch_tokens: {micro_batch_tokens}: out of memory",
            hint="lower it in the run's config.toml, or free memory; then `sftctl resume`",
        ) from problem


def _is_out_of_memory(problem: RuntimeError) -> bool:
    return isinstance(problem, torch.OutOfMemoryError) or bool(
        re.search(r"out of memory|not enough memory|can't allocate memory", str(problem))
    )


def _too_large(batch: MicroBatch, micro_batch_tokens: int) -> ConfigError:
    message = f"train.micro_batch_tokens: {micro_batch_tokens}: out of memory"
    if len(batch.examples) > 1:
        return ConfigError(
            f"{message} with {len(batch.examples)} examples of {batch.num_tokens} tokens together",
            hint=f"--micro-batch-tokens {batch.num_tokens // 2} is half of that, or "
            "--set train.activation_checkpointing=true",
        )
    return ConfigError(
        f"{message} with one example of {batch.num_tokens} tokens",
        hint="--set train.activation_checkpointing=true, --strategy fsdp on several ranks, or "
        "prepare the data with a smaller --max-seq-len",
    )
