"""What fits on a device, and the largest micro-batch tried out before the first step."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from sftctl.data.loader import StepShape, longest_micro_batch
from sftctl.errors import ConfigError
from sftctl.runs.directory import RunDir
from sftctl.train.preflight.rehearsal import ModelShape, fitting_tokens, rehearse, shortage_told
from sftctl.train.run import run_training
from tests.toys.data import ToyStore
from tests.toys.runs import toy_config, toy_data
from tests.toys.steps import ALONE, STORE, equal, make_config, make_model, make_state

MINIMIND = ModelShape(num_parameters=63_912_192, num_layers=8, width=768, inner=13_568)
GB = 1 << 30


def fitting(total_bytes: int, num_shares: int = 1, **train: object) -> int:
    config = make_config(dtype="bfloat16", **train)
    return fitting_tokens(MINIMIND, total_bytes, num_shares, config)


def test_more_memory_more_shares_and_checkpointing_fit_more_tokens() -> None:
    assert fitting(8 * GB) < fitting(12 * GB) < fitting(24 * GB)
    assert fitting(8 * GB) < fitting(8 * GB, num_shares=8)
    assert fitting(8 * GB) < fitting(8 * GB, activation_checkpointing=True)
    assert fitting(8 * GB) % 256 == 0
    assert fitting(8 * GB) == fitting(8 * GB)


def test_what_fits_has_a_floor_and_a_ceiling() -> None:
    assert fitting(GB // 2) == 256
    assert fitting(1000 * GB) == 65536


def test_the_shape_is_read_from_a_models_configuration() -> None:
    shape = ModelShape.of(make_model())
    assert (shape.num_layers, shape.width) == (2, 32)
    assert shape.inner == 3 * 4 * 16 + 4 * 2 * 16 + 4 * 48


@pytest.mark.parametrize("recomputed", [False, True])
def test_the_estimate_covers_what_a_backward_pass_keeps(recomputed: bool) -> None:
    """All tensors kept for it, once each, without the weights; and not three times as much.

    (A layer that is run again keeps what this does not see.)
    """
    config = make_config(activation_checkpointing=recomputed)
    state = make_state(config)
    weights = {p.untyped_storage().data_ptr() for p in state.loss_module.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = longest_micro_batch(STORE, shape_of(256))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        state.loss_module(*batch.tensors).backward()
    per_token = sum(kept.values()) / batch.input_ids.numel()
    logits = 2 * 4 * STORE.vocab_size  # they have an allowance of their own
    estimate = ModelShape.of(state.loss_module.model).bytes_per_token("float32", recomputed)
    assert per_token - logits <= estimate
    assert recomputed or estimate <= 3 * per_token


def shape_of(micro_batch_tokens: int, batch_size: int = 8) -> StepShape:
    return StepShape(
        seed=0,
        global_batch_size=batch_size,
        micro_batch_tokens=micro_batch_tokens,
        cut_for_ranks=1,
        rank=0,
        world_size=1,
    )


def test_a_rehearsal_leaves_nothing_behind() -> None:
    state = make_state(make_config())
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    rehearse(state, STORE, shape_of(64), ALONE)
    assert equal(state.tensors(), before)
    assert all(p.grad is None for p in state.loss_module.parameters())
    assert state.progress.step == 0


@contextmanager
def memory_for(num_bytes: int) -> Iterator[None]:
    """This process may take so much more address space, and no more."""
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
            "8000 rows of 50 tokens",
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
    rehearse(state, STORE, shape_of(64), ALONE)  # threads are born, libraries loaded
    store = ToyStore(lengths, STORE.vocab_size)
    with memory_for(128 << 20), pytest.raises(ConfigError) as caught:
        rehearse(state, store, shape_of(400_000, batch_size=8000), ALONE)
    assert caught.value.message == f"train.micro_batch_tokens: 400000: out of memory with {what}"
    assert caught.value.hint == hint
    assert caught.value.exit_code == 2
    assert all(p.grad is None for p in state.loss_module.parameters())


def test_auto_is_a_number_in_the_runs_configuration(tmp_path: Path) -> None:
    toy_data(tmp_path)
    settings = {"train__micro_batch_tokens": "auto", "train__max_steps": 1}
    run_training(toy_config(tmp_path, "run", **settings))
    assert RunDir.open(tmp_path / "run").config().train.micro_batch_tokens == 1024


def test_memory_that_ends_during_a_run_is_one_error_and_other_faults_stay_what_they_are() -> None:
    with pytest.raises(ConfigError) as caught, shortage_told(2048):
        torch.empty(1 << 60)
    assert caught.value.message == "train.micro_batch_tokens: 2048: out of memory"
    assert caught.value.hint is not None and "then `sftctl resume`" in caught.value.hint
    with pytest.raises(RuntimeError, match="shape"), shortage_told(2048):
        torch.zeros(2).view(3)
