"""onednn: its products are torch's, for every shape and memory layout."""

import pytest
import torch

from sftctl.model.onednn import use_onednn

SHAPES = [(1, 1, 3), (5, 7, 4), (0, 8, 3), (64, 96, 33), (300, 128, 257), (300, 512, 513)]


def pair_of(inputs: int, outputs: int, bias: bool) -> tuple[torch.nn.Linear, torch.nn.Linear]:
    torch.manual_seed(0)
    plain = torch.nn.Linear(inputs, outputs, bias=bias)
    fast = torch.nn.Linear(inputs, outputs, bias=bias)
    fast.load_state_dict(plain.state_dict())
    use_onednn(fast)
    return plain, fast


def run(layer: torch.nn.Linear, values: torch.Tensor) -> list[torch.Tensor]:
    """The output, and the gradients of the values, the weight and the bias."""
    values = values.detach().requires_grad_()
    output = layer(values)
    (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    parameters = [parameter.grad for parameter in layer.parameters()]
    return [output.detach(), values.grad, *parameters]


def assert_alike(plain: torch.nn.Linear, fast: torch.nn.Linear, values: torch.Tensor) -> None:
    """Equal but for float32's rounding, as relative L2."""
    for ours, theirs in zip(run(fast, values), run(plain, values), strict=True):
        assert ours.shape == theirs.shape
        assert float((ours - theirs).norm()) <= 1e-6 * float(theirs.norm())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
def test_output_and_gradients_are_torchs(rows: int, inputs: int, outputs: int, bias: bool) -> None:
    plain, fast = pair_of(inputs, outputs, bias)
    assert_alike(plain, fast, torch.randn(2, rows, inputs))


def test_values_may_have_any_strides() -> None:
    plain, fast = pair_of(16, 8, bias=False)
    assert_alike(plain, fast, torch.randn(16, 12, 2).permute(2, 1, 0))


def test_other_dtypes_are_left_to_torch() -> None:
    plain, fast = pair_of(512, 513, bias=False)
    assert_alike(plain.double(), fast.double(), torch.randn(600, 512).double())


def test_frozen_weights_get_no_gradient() -> None:
    _, fast = pair_of(16, 8, bias=False)
    fast.weight.requires_grad_(False)
    assert run(fast, torch.randn(4, 16))[2] is None


def test_the_same_bits_every_time() -> None:
    _, fast = pair_of(512, 513, bias=False)
    values = torch.randn(600, 512)
    first = run(fast, values)
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(first, run(fast, values), strict=True))


@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(4, 16, 8), (600, 512, 513)])
def test_autocast_still_chooses_the_dtype(rows: int, inputs: int, outputs: int) -> None:
    _, fast = pair_of(inputs, outputs, bias=False)
    with torch.autocast("cpu", torch.bfloat16):
        assert fast(torch.randn(rows, inputs)).dtype == torch.bfloat16


class DoublingLinear(torch.nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


def test_layers_of_other_classes_keep_their_forward() -> None:
    layer, values = DoublingLinear(4, 4), torch.randn(2, 4)
    expected = layer(values)
    use_onednn(layer)
    assert torch.equal(layer(values), expected)


def test_use_onednn_replaces_forward_and_keeps_the_names_of_weights() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
    names = list(model.state_dict())
    use_onednn(model)
    assert "forward" in vars(model[0])
    assert list(model.state_dict()) == names
