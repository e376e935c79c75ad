"""nf4: what a layer holds and computes, and that its bytes depend on the weight alone."""

from collections.abc import Iterator

import pytest
import torch

from sftctl.config.adapter import AdapterConfig
from sftctl.errors import ConfigError
from sftctl.model.adapter.lora import add_adapter, quantizable_layers
from sftctl.model.adapter.nf4 import NF4Linear, num_quantized, quantize, quantized_layers
from tests.toys.models import toy_base

LEVELS = [
    -1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0,
]  # fmt: skip


@pytest.fixture
def layer() -> torch.nn.Linear:
    torch.manual_seed(3)
    return torch.nn.Linear(96, 40)  # a block of 64 goes over the end of a row


def test_a_weight_is_a_level_times_the_largest_of_its_block(layer: torch.nn.Linear) -> None:
    weight = layer.weight.detach()
    blocks = weight.reshape(-1, 64)
    scales = blocks.abs().amax(1, keepdim=True)
    nearest = ((blocks / scales).unsqueeze(-1) - torch.tensor(LEVELS)).abs().argmin(-1)
    found = NF4Linear(layer, torch.float32).weight.reshape(-1, 64)
    levels = torch.tensor(LEVELS)[nearest]
    own_scales = found.abs().amax(1, keepdim=True)
    torch.testing.assert_close(found, levels * own_scales, atol=1e-6, rtol=1e-5)
    assert torch.allclose(own_scales, scales, rtol=0.06)  # they have 8 bits
    assert not torch.equal(own_scales, scales)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_computes_with_the_dequantized_weight_in_the_type_of_its_inputs(
    layer: torch.nn.Linear, dtype: torch.dtype
) -> None:
    narrow = NF4Linear(layer, torch.bfloat16)
    weight = narrow.dequantized(torch.float32)
    assert torch.equal(narrow.dequantized(dtype), weight.to(dtype))  # rounded once
    values = torch.randn(5, 96, dtype=dtype, requires_grad=True)
    outputs = narrow(values)
    expected = torch.nn.functional.linear(values, weight.to(dtype)) + layer.bias.to(dtype)
    assert outputs.dtype == dtype
    torch.testing.assert_close(outputs, expected)
    outputs.sum().backward()
    expected_grad = torch.ones(5, 40, dtype=dtype) @ weight.to(dtype)
    torch.testing.assert_close(values.grad, expected_grad)
    with torch.autocast("cpu", torch.bfloat16):
        assert narrow(values).dtype == torch.bfloat16


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_two_loads_have_equal_bytes_on_any_number_of_threads(threads: None) -> None:
    found = []
    for number in (1, 2):
        torch.set_num_threads(number)
        model = toy_base("llama", intermediate_size=1024)
        quantize(model, quantizable_layers(model), torch.bfloat16)
        layers = [*quantized_layers(model)]
        found.append([(one.packed, one.dequantized(torch.float32)) for one in layers])
    assert len(found[0]) == 2 * 7
    for one, other in zip(*found, strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def test_all_linear_layers_of_the_blocks_are_quantized_and_nothing_else() -> None:
    model, plain = toy_base("llama"), toy_base("llama")
    quantize(model, quantizable_layers(model, ["q_proj"]), torch.bfloat16)
    names = {name for name, _ in model.named_parameters()}
    assert {name for name, _ in plain.named_parameters()} - names == {
        f"model.layers.{layer}.{part}_proj.weight"
        for layer in (0, 1)
        for part in ("self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")
    }
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())
    assert num_quantized(model) == sum(
        p.numel() for name, p in plain.named_parameters() if name not in names
    )
    assert model.state_dict().keys() == names | {"lm_head.weight"}


def test_an_adapter_is_drawn_as_on_a_plain_base() -> None:
    trained = []
    for is_narrow in (True, False):
        model = toy_base("llama")
        if is_narrow:
            quantize(model, quantizable_layers(model), torch.bfloat16)
        add_adapter(model, AdapterConfig(lora=True, rank=4), 3)
        trained.append({n: p for n, p in model.named_parameters() if p.requires_grad})
    assert trained[0].keys() == trained[1].keys()
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])


def test_blocks_without_linear_layers_are_refused() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(ConfigError, match="the blocks of this model have no linear layers"):
        quantizable_layers(model)
