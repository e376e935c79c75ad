"""How much memory a run takes, and `micro_batch_tokens = auto`."""

from pathlib import Path

import pytest
import torch

from sftctl.config.schema import TrainConfig
from sftctl.data.loading.loader import longest_micro_batch
from sftctl.data.step_shape import step_shape
from sftctl.machine import free_memory
from sftctl.runs.directory import RunDir
from sftctl.train.preflight.memory import ModelShape, available_memory, fitting_tokens
from sftctl.train.run import run_training
from tests.toys.data import ToyStore
from tests.toys.runs import toy_config, toy_data
from tests.toys.steps import STORE, make_config, make_model, make_state

MINIMIND = ModelShape(
    num_parameters=63_912_192, num_trained=63_912_192, num_layers=8, width=768, inner=13_568
)
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
    assert shape.inner == 5 * 4 * 16 + 4 * 2 * 16 + 4 * 48


@pytest.mark.parametrize("recomputed", [False, True])
def test_the_estimate_covers_what_a_backward_pass_keeps(recomputed: bool) -> None:
    """It is at least the size of all kept tensors without weights, and less than three times that.

    (Tensors that a recomputed layer keeps are not seen here.)
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

    shape = step_shape(TrainConfig(batch_size=8, micro_batch_tokens=256))
    batch = longest_micro_batch(ToyStore([64] * 4, STORE.vocab_size), shape)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        state.loss_module(*batch.tensors).backward()
    per_token = sum(kept.values()) / batch.input_ids.numel()
    logits = 2 * 4 * STORE.vocab_size  # they have an allowance of their own
    estimate = ModelShape.of(state.loss_module.model).bytes_per_token("float32", recomputed)
    assert per_token - logits <= estimate
    assert recomputed or estimate <= 3 * per_token


def test_auto_is_a_number_in_the_runs_configuration(tmp_path: Path) -> None:
    toy_data(tmp_path)
    settings = {"train__micro_batch_tokens": "auto", "train__max_steps": 1}
    run_training(toy_config(tmp_path, "run", **settings))
    assert RunDir.open(tmp_path / "run").config().train.micro_batch_tokens == 1024


def test_ranks_on_one_machine_share_its_free_memory() -> None:
    cpu = torch.device("cpu")
    alone, shared = available_memory(cpu, 1), available_memory(cpu, 4)
    free = free_memory()
    if free is None:
        assert alone is None and shared is None
    else:
        assert alone is not None and shared is not None
        assert shared < alone and alone - shared == pytest.approx(free * 3 / 4, rel=0.2)
