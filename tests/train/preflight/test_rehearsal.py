"""The largest micro-batch is tried before the first step; running out of memory is one error."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from sftctl.config.schema import TrainConfig
from sftctl.data.step_shape import StepShape, step_shape
from sftctl.errors import ConfigError
from sftctl.train.preflight.rehearsal import out_of_memory_as_error, rehearse
from tests.toys.data import ToyStore
from tests.toys.steps import ALONE, STORE, equal, make_config, make_state


def shape_of(micro_batch_tokens: int, batch_size: int = 8) -> StepShape:
    train = TrainConfig(micro_batch_tokens=micro_batch_tokens, batch_size=batch_size)
    return step_shape(train)


def has_gradient(weight: torch.nn.Parameter) -> bool:
    return weight.grad is not None and bool(weight.grad.any())


def test_a_rehearsal_leaves_nothing_behind() -> None:
    state = make_state(make_config())
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    rehearse(state, STORE, shape_of(64), ALONE)
    assert equal(state.tensors(), before)
    assert not any(map(has_gradient, state.weights.trained))
    assert state.progress.step == 0


@contextmanager
def memory_for(num_bytes: int) -> Iterator[None]:
    """Within this, the process can take at most `num_bytes` more address space."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize(
    ("lengths", "what", "hint"),
    [
        (
            [50] * 8000,
            "8000 examples of 400000 tokens together",
            "--micro-batch-tokens 200000 is half of that, or "
            "--set train.activation_checkpointing=true",
        ),
        (
            [400_000],
            "one example of 400000 tokens",
            "--set train.activation_checkpointing=true, --strategy fsdp on several ranks, or "
            "prepare the data with a smaller --max-seq-len",
        ),
    ],
)
def test_out_of_memory_names_the_value_to_set(lengths: list[int], what: str, hint: str) -> None:
    state = make_state(make_config())
    rehearse(state, STORE, shape_of(64), ALONE)  # starts threads and loads libraries
    store = ToyStore(lengths, STORE.vocab_size)
    with memory_for(128 << 20), pytest.raises(ConfigError) as caught:
        rehearse(state, store, shape_of(400_000, batch_size=8000), ALONE)
    assert caught.value.message == f"train.micro_batch_tokens: 400000: out of memory with {what}"
    assert caught.value.hint == hint
    assert caught.value.exit_code == 2
    assert not any(map(has_gradient, state.weights.trained))


def test_out_of_memory_during_a_run_is_one_error_and_other_errors_stay() -> None:
    with pytest.raises(ConfigError) as caught, out_of_memory_as_error(2048):
        torch.empty(1 << 60)
    assert caught.value.message == "train.micro_batch_tokens: 2048: out of memory"
    assert caught.value.hint is not None and "then `sftctl resume`" in caught.value.hint
    with pytest.raises(RuntimeError, match="shape"), out_of_memory_as_error(2048):
        torch.zeros(2).view(3)
