"""Weights: float32 masters behind bfloat16 copies, and gradients that are summed in float32."""

from typing import Any

import pytest
import torch

from sftctl.model.loss import check_head
from sftctl.train.engine.build import build_state
from sftctl.train.engine.weights import Weights
from tests.toys.steps import (
    ALONE,
    equal,
    first_gradient,
    make_config,
    make_model,
    make_state,
    relative_distance,
    steps_of,
    take,
)


def test_without_a_compute_dtype_the_weights_are_the_parameters() -> None:
    model = make_model()
    weights = Weights(model)
    assert {id(w) for w in weights.named.values()} == {id(p) for p in model.parameters()}
    assert weights.master_of(model.lm_head.weight) is model.lm_head.weight


def test_masters_are_float32_and_the_model_computes_in_bfloat16() -> None:
    model = make_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = Weights(model, torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert equal(weights.state_dict(), before)
    assert weights.master_of(model.lm_head.weight).dtype == torch.float32


def test_a_tied_weight_has_one_master() -> None:
    model = make_model()
    weights = Weights(model, torch.bfloat16)
    state = weights.state_dict()
    assert "lm_head.weight" not in weights.named
    tied = (state["lm_head.weight"], state["model.embed_tokens.weight"])
    assert tied[0].data_ptr() == tied[1].data_ptr()


def test_modules_that_must_stay_in_float32_do() -> None:
    model = make_model()
    model._keep_in_fp32_modules = ["input_layernorm"]
    Weights(model, torch.bfloat16)
    assert model.model.layers[0].input_layernorm.weight.dtype == torch.float32
    for other in (model.model.embed_tokens, model.model.layers[1].mlp.up_proj, model.model.norm):
        assert other.weight.dtype == torch.bfloat16


def test_gradients_of_passes_add_up_in_float32() -> None:
    """In bfloat16, 256 + 1 is 256."""
    model: Any = torch.nn.Linear(1, 1, bias=False)
    weights = Weights(model, torch.bfloat16)
    weights.use_one_buffer()
    for gradient in (256.0, 1.0, 1.0):
        model.weight.grad = torch.full((1, 1), gradient, dtype=torch.bfloat16)
        weights.collect_gradients()
        assert model.weight.grad is None
    [master] = weights.trained
    assert master.grad is not None and master.grad.item() == 258.0
    model.weight.grad = torch.ones((1, 1), dtype=torch.bfloat16)
    weights.clear_gradients()
    assert (master.grad.item(), model.weight.grad) == (0.0, None)


def test_publish_copies_the_masters() -> None:
    model = make_model()
    weights = Weights(model, torch.bfloat16)
    with torch.no_grad():
        weights.named["model.norm.weight"].fill_(1.001)
    assert model.model.norm.weight[0].item() == 1.0
    weights.publish()
    assert model.model.norm.weight[0].item() == torch.tensor(1.001).bfloat16().item()


def test_loading_fills_masters_and_copies() -> None:
    model = make_model()
    weights = Weights(model, torch.bfloat16)
    filled = {name: torch.full_like(t, 0.3) for name, t in weights.state_dict().items()}
    weights.load_state_dict(filled)
    assert equal(weights.state_dict(), filled)
    assert model.model.norm.weight[0].item() == torch.tensor(0.3).bfloat16().item()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_gradient_of_a_step_does_not_depend_on_the_cut_beyond_rounding(dtype: str) -> None:
    gradients = []
    for micro_batch_tokens in (1, 64, 1 << 20):
        config = make_config(dtype=dtype, micro_batch_tokens=micro_batch_tokens)
        state = make_state(config)
        take(state, steps_of(config)[0], config)
        gradients.append(first_gradient(state))
    bound = {"float32": 1e-5, "bfloat16": 1e-2}[dtype]
    for gradient in gradients[1:]:
        assert relative_distance(gradient, gradients[0]) < bound


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("reduction", ["plain", "exact"])
def test_frozen_weights_get_no_gradient_and_stay(dtype: str, reduction: str) -> None:
    model, config = make_model(), make_config(dtype=dtype, reduction=reduction)
    frozen = {name for name, _ in model.named_parameters() if "embed" in name or "layers.0" in name}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    state = build_state(model, config, ALONE, longest_row=64)
    before = {name: weight.detach().clone() for name, weight in state.weights.named.items()}
    take(state, steps_of(config)[0], config)
    changed = {n for n, w in state.weights.named.items() if not torch.equal(w.detach(), before[n])}
    assert changed == before.keys() - frozen
    assert not frozen & {
        name.rpartition(".")[0] for name in state.statefuls()["optimizer"].state_dict()
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_plain_head_is_plain_in_every_dtype(dtype: str) -> None:
    """In bfloat16 the loss uses the master behind the head, which must be enlarged as well."""
    config = make_config(dtype=dtype)
    state = make_state(config)
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    rows = steps_of(config)[0].micro_batches[0]
    assert check_head(state.loss_module, rows.tensors).is_plain
    assert equal(state.tensors(), before)
