"""AdamW over named parameters, and clipping of gradients."""

import math

import pytest
import torch

from sftctl.config.optim import OptimConfig
from sftctl.train.engine.optim import NamedOptimizer, build_optimizer, clip_gradients
from tests.toys.steps import ALONE, make_model


def test_only_matrices_decay() -> None:
    model = make_model(attention_bias=True)
    groups = build_optimizer(
        dict(model.named_parameters()), OptimConfig(weight_decay=0.3)
    ).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        expected = 0.0 if "norm" in name or name.endswith("bias") else 0.3
        assert decay[id(parameter)] == expected, name
    assert sorted({group["weight_decay"] for group in groups}) == [0.0, 0.3]


def test_a_tied_parameter_is_optimized_once() -> None:
    model = make_model()
    groups = build_optimizer(dict(model.named_parameters()), OptimConfig()).param_groups
    listed = [id(p) for group in groups for p in group["params"]]
    assert len(listed) == len(set(listed)) == len(list(model.parameters()))


def test_the_settings_reach_the_optimizer() -> None:
    optim = OptimConfig(beta1=0.8, beta2=0.95, eps=1e-6)
    for group in build_optimizer(dict(make_model().named_parameters()), optim).param_groups:
        assert (group["betas"], group["eps"]) == ((0.8, 0.95), 1e-6)


def test_a_model_with_only_matrices_has_one_group() -> None:
    model = torch.nn.Linear(2, 3, bias=False)
    assert len(build_optimizer(dict(model.named_parameters()), OptimConfig()).param_groups) == 1


def test_frozen_parameters_are_left_out() -> None:
    model = torch.nn.Linear(2, 3)
    model.bias.requires_grad_(False)
    [group] = build_optimizer(dict(model.named_parameters()), OptimConfig()).param_groups
    assert [id(p) for p in group["params"]] == [id(model.weight)]


def test_the_initial_optimizer_state_makes_the_updates_of_a_plain_adamw() -> None:
    """Made by hand, so that it can be loaded into: the update must be that of a plain AdamW."""
    torch.manual_seed(0)
    ours, plain = torch.nn.Linear(3, 3, bias=False), torch.nn.Linear(3, 3, bias=False)
    plain.load_state_dict(ours.state_dict())
    optimizer = build_optimizer(dict(ours.named_parameters()), OptimConfig(weight_decay=0.1))
    reference = torch.optim.AdamW(plain.parameters(), lr=0.1, weight_decay=0.1, fused=True)
    for _ in range(3):
        for model, each in ((ours, optimizer), (plain, reference)):
            each.param_groups[0]["lr"] = 0.1
            each.zero_grad()
            model(torch.ones(1, 3)).pow(2).sum().backward()
            each.step()
    assert torch.equal(ours.weight, plain.weight)


def test_tensors_are_named_after_their_parameters_and_loaded_in_place() -> None:
    one, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    optimizers = [
        build_optimizer(dict(model.named_parameters()), OptimConfig()) for model in (one, other)
    ]
    one(torch.ones(1, 2)).sum().backward()
    optimizers[0].step()
    source = NamedOptimizer(optimizers[0], dict(one.named_parameters()))
    target = NamedOptimizer(optimizers[1], dict(other.named_parameters()))
    assert sorted(source.state_dict()) == sorted(
        f"{name}.{key}" for name in ("weight", "bias") for key in ("step", "exp_avg", "exp_avg_sq")
    )
    before = target.state_dict()
    target.load_state_dict(source.state_dict())
    for key, tensor in target.state_dict().items():
        assert tensor is before[key]
        assert torch.equal(tensor, source.state_dict()[key])
    assert float(before["weight.step"]) == 1.0


# ---------------------------------------------------------------------------- clipping


def test_the_norm_of_a_large_gradient_is_right_to_the_sixth_digit() -> None:
    """A plain float32 norm of this matrix is wrong in the fourth: it would clip otherwise."""
    torch.manual_seed(0)
    module = torch.nn.Linear(1024, 4096, bias=False)
    gradient = torch.randn(4096, 1024)
    module.weight.grad = gradient.clone()
    exact = float(gradient.double().norm())
    assert clip_gradients(list(module.parameters()), 1.0, ALONE) == pytest.approx(exact, rel=1e-6)
    assert float(module.weight.grad.double().norm()) == pytest.approx(1.0, rel=1e-5)


def test_gradients_below_the_norm_are_left_as_they_are() -> None:
    model = torch.nn.ModuleList([torch.nn.Linear(3, 2), torch.nn.Linear(2, 2)])
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, float(number))
    before = [torch.full_like(p, float(number)) for number, p in enumerate(model.parameters())]
    expected = torch.cat([gradient.flatten() for gradient in before]).norm()
    assert clip_gradients(list(model.parameters()), math.inf, ALONE) == pytest.approx(
        float(expected)
    )
    for parameter, gradient in zip(model.parameters(), before, strict=True):
        assert parameter.grad is not None and torch.equal(parameter.grad, gradient)
