"""The comparison of two models' logits, which the proofs of exports use."""

import math

import torch

from sftctl.trained.logits import compare_logits


def test_the_largest_difference_and_the_share_of_equal_greedy_tokens() -> None:
    ours = torch.eye(4)
    found = compare_logits([(ours, ours), (ours, ours.roll(1, dims=1) * 0.5)])
    assert (found.rows, found.tokens) == (2, 8)
    assert (found.largest_difference, found.equal_greedy) == (1.0, 0.5)


def test_a_logit_that_is_not_a_number_is_not_forgotten() -> None:
    good, bad = torch.eye(4), torch.eye(4)
    bad[1, 1] = math.nan
    assert math.isnan(compare_logits([(good, bad), (good, good)]).largest_difference)
