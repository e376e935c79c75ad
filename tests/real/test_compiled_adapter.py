"""Compiled blocks with an adapter, on a plain base and on one in nf4: the same gradients.

By dynamo and autograd's tracing alone (`aot_eager`): what inductor makes of the graphs needs a C++
compiler and minutes. Here because tracing takes half a minute.
"""

import pytest
import torch

from sftctl.config.adapter import AdapterConfig
from sftctl.model.adapter.lora import add_adapter, quantizable_layers
from sftctl.model.adapter.nf4 import quantize
from sftctl.train.engine.parallel import blocks
from tests.toys.models import toy_base

pytestmark = pytest.mark.real


@pytest.mark.parametrize("form", ["float32", "nf4"])
def test_compiled_blocks_give_an_adapter_the_same_gradients(form: str) -> None:
    found = []
    for is_compiled in (False, True):
        model = toy_base("llama", num_hidden_layers=1)
        if form == "nf4":
            quantize(model, quantizable_layers(model), torch.float32)
        add_adapter(model, AdapterConfig(lora=True, rank=4, targets=["q_proj", "up_proj"]), 3)
        trained = [p for p in model.parameters() if p.requires_grad]
        for parameter in trained:  # B begins at 0, with which A would have no gradient
            parameter.data += 0.01
        if is_compiled:
            for block in blocks(model):
                block.compile(dynamic=True, backend="aot_eager")
        model(torch.arange(3, 20)[None]).logits.square().mean().backward()
        found.append([p.grad for p in trained])
    assert len(found[0]) == 2 * 2
    for one, other in zip(*found, strict=True):
        assert float(one.abs().max()) > 0
        torch.testing.assert_close(one, other)
