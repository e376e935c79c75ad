"""moe_loss: the auxiliary loss is each example's own, whatever the micro-batches."""

from typing import Any

import pytest
import torch

from sftctl.data.loading.microbatch import MicroBatch, collate
from sftctl.model.loss import LossModule
from sftctl.model.moe_loss import balance_coefficient, balance_loss, row_numbers
from sftctl.model.presets import preset_config
from sftctl.model.row_attention import own_attention, use_row_attention
from tests.toys.data import ToyStore
from tests.toys.steps import ROUTER_COEFFICIENT, make_mixture

STORE = ToyStore([9, 14, 5, 11], vocab_size=61)


def module_of(model: Any) -> LossModule:
    use_row_attention(model)
    module = LossModule(model)
    module.attends_by_rows = True
    return module


def gradients_of(model: Any, batches: list[MicroBatch]) -> dict[str, torch.Tensor]:
    module = module_of(model).train()
    model.zero_grad()
    for batch in batches:
        module(*batch.tensors).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    for name in one:
        torch.testing.assert_close(
            one[name], other[name], rtol=1e-4, atol=1e-5 * float(other[name].abs().max()), msg=name
        )


def test_a_rows_loss_is_transformers_loss_of_the_row_alone() -> None:
    from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

    torch.manual_seed(0)
    lengths = torch.tensor([7, 3, 5, 0], dtype=torch.int32)
    logits = tuple(torch.randn(15, 4) for _ in range(2))  # two layers
    expected = [
        load_balancing_loss_func(
            tuple(layer[end - length : end] for layer in logits), num_experts=4, top_k=2
        )
        for length, end in ((7, 7), (3, 10), (5, 15))
    ]
    ours = balance_loss(logits, 2, lengths, row_numbers(lengths, 15))
    torch.testing.assert_close(ours, torch.stack([*expected, torch.tensor(0.0)]))


def test_gradients_do_not_depend_on_the_micro_batches() -> None:
    model = make_mixture()
    cuts: list[list[tuple[int, ...]]] = [[(1, 3, 0, 2)], [(1, 3), (0, 2)], [(1,), (3,), (0,), (2,)]]
    whole, *others = [gradients_of(model, [collate(STORE, c, 0) for c in cut]) for cut in cuts]
    for other in others:
        assert_close(other, whole)


def test_the_gradient_is_of_both_losses() -> None:
    """With transformers' own functions, one row at a time, weighted by the row's target tokens."""
    from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

    model = make_mixture()
    ours = gradients_of(model, [collate(STORE, (0, 1, 2, 3), 0)])
    model.zero_grad()
    for index in range(4):
        batch = collate(STORE, (index,), 0)
        num_targets, ids = batch.num_target_tokens, batch.input_ids[:, : batch.num_tokens]
        with own_attention(model, "eager"):
            output = model(input_ids=ids, output_router_logits=True)
        picked = output.logits[0, batch.target_positions[:num_targets]]
        targets = batch.target_ids[:num_targets]
        loss = torch.nn.functional.cross_entropy(picked, targets, reduction="sum")
        auxiliary = load_balancing_loss_func(output.router_logits, num_experts=4, top_k=2)
        (loss + ROUTER_COEFFICIENT * num_targets * auxiliary).backward()
    theirs = {name: p.grad for name, p in model.named_parameters()}
    assert_close(ours, theirs)
    model.config.router_aux_loss_coef = 0.0
    without = gradients_of(model, [collate(STORE, (0, 1, 2, 3), 0)])
    gate = "model.layers.0.mlp.gate.weight"
    assert float((without[gate] - theirs[gate]).norm() / theirs[gate].norm()) > 0.01


@pytest.mark.parametrize("training", [True, False])
def test_the_value_is_the_cross_entropy_alone(training: bool) -> None:
    model, batch = make_mixture(), collate(STORE, (0, 1, 2, 3), 0)
    value = module_of(model).train(training)(*batch.tensors).item()
    model.config.router_aux_loss_coef = 0.0
    assert value == module_of(model).train(training)(*batch.tensors).item()


def test_outside_training_the_gradient_is_the_cross_entropys_alone() -> None:
    model, batch = make_mixture(), collate(STORE, (0, 1, 2, 3), 0)

    def gate_gradient() -> torch.Tensor:
        model.zero_grad()
        LossModule(model).eval()(*batch.tensors).backward()
        gradient: torch.Tensor = model.get_parameter("model.layers.0.mlp.gate.weight").grad
        return gradient

    with_router = gate_gradient()
    model.config.router_aux_loss_coef = 0.0
    assert torch.equal(with_router, gate_gradient())


def test_a_model_without_a_router_has_no_coefficient() -> None:
    assert balance_coefficient(preset_config("tiny", 53)) == 0.0
    assert balance_coefficient(preset_config("minimind-3-moe", 53)) == 5e-4


def test_a_mixture_whose_layers_are_all_dense_has_no_auxiliary_loss() -> None:
    model = make_mixture(mlp_only_layers=[0, 1])
    assert balance_coefficient(model.config) > 0
    batch = collate(STORE, (1, 3), 0)
    module = module_of(model).train()
    loss = module(*batch.tensors)
    assert loss.item() == pytest.approx(module.eval()(*batch.tensors).item())
    loss.backward()
