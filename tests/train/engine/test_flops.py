"""Operations per token, and the speed of matrix products."""

import torch

from sftctl.data.sample import SAMPLE_TOKENIZER
from sftctl.model.load import load_model
from sftctl.model.tokenizer.tokenizer import load_tokenizer
from sftctl.train.engine.flops import matmul_flops_per_s, model_flops


def test_a_token_costs_six_operations_for_each_weight_of_the_layers() -> None:
    tokenizer = load_tokenizer(str(SAMPLE_TOKENIZER))
    model = load_model("tiny", tokenizer, seed=0)
    projections = 64 * (4 * 16) + 2 * 64 * (2 * 16) + (4 * 16) * 64  # q, k and v, o
    layer = projections + 3 * 64 * 192
    assert model_flops(model) == (6 * 2 * layer, 6 * 64 * tokenizer.vocab_size)


def test_a_mixture_of_experts_has_no_operation_count() -> None:
    model = load_model("tiny", load_tokenizer(str(SAMPLE_TOKENIZER)), seed=0)
    model.config.num_experts = 4
    assert model_flops(model) == (0, 0)


def test_the_rate_of_this_machine_is_a_number_and_draws_nothing_at_random() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    assert matmul_flops_per_s(torch.device("cpu"), torch.float32) > 1e6
    assert torch.equal(torch.rand(2), expected)
