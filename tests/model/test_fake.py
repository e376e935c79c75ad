"""fake: sizes from fake tensors against those of a real model."""

from collections.abc import Callable

import pytest
import torch

from sftctl.model.fake import fake_model
from sftctl.model.load import load_model
from sftctl.model.loss import LossModule
from sftctl.model.tokenizer.tokenizer import ChatTokenizer

CPU = torch.device("cpu")


def saved_by_a_real_model(name: str, tokenizer: ChatTokenizer, dtype: torch.dtype) -> int:
    """The bytes that autograd keeps in a real pass over 512 tokens with 100 targets."""
    model = load_model(name, tokenizer, seed=0)
    module = LossModule(model).train()
    if dtype == torch.bfloat16:  # copies of the weights, and the float32 weight of the head
        module.head_weight = model.get_output_embeddings().weight.detach().clone().requires_grad_()
        model.to(dtype)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def take(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    zeros = torch.zeros(1, 512, dtype=torch.long)
    targets = torch.zeros(100, dtype=torch.long)
    with (
        torch.autograd.graph.saved_tensors_hooks(take, lambda tensor: tensor),
        torch.autocast("cpu", dtype, enabled=dtype == torch.float16),
    ):
        module(zeros, zeros, targets, targets, torch.tensor([512]))
    return sum(size for name, size in kept.items() if name not in own)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_fake_model_has_the_size_and_the_activations_of_the_real_one(
    bundled: ChatTokenizer, dtype: torch.dtype
) -> None:
    fake = fake_model("small", bundled, CPU)
    real = load_model("small", bundled, seed=0)
    assert fake.num_parameters == sum(p.numel() for p in real.parameters())
    kept = fake.activation_bytes(512, 100, dtype)
    assert kept == pytest.approx(saved_by_a_real_model("small", bundled, dtype), rel=0.2)


def test_a_larger_micro_batch_keeps_more(bundled: ChatTokenizer) -> None:
    fake = fake_model("tiny", bundled, CPU)
    sizes = [fake.activation_bytes(64 * rows, 16 * rows) or 0 for rows in (1, 2, 4)]
    assert sizes == sorted(sizes) and len({*sizes}) == 3


def test_several_chunks_of_logits_are_counted(bundled: ChatTokenizer) -> None:
    many = 2 * (1 << 24) // bundled.vocab_size
    assert fake_model("tiny", bundled, CPU).activation_bytes(1024, many) is not None


@pytest.mark.parametrize(
    "read", [torch.Tensor.item, lambda hidden: torch.stack([]), lambda hidden: hidden + "text"]
)
def test_a_model_whose_code_fails_with_fake_tensors_has_an_unknown_size(
    bundled: ChatTokenizer, read: Callable[[torch.Tensor], object]
) -> None:
    fake = fake_model("tiny", bundled, CPU)
    fake.model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, hidden: read(hidden.sum())
    )
    assert fake.activation_bytes(64, 16) is None


def test_a_fake_model_draws_no_random_number(bundled: ChatTokenizer) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fake_model("tiny", bundled, CPU).activation_bytes(16, 4)
    assert torch.equal(torch.rand(3), expected)
