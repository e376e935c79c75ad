"""train_step: the update, its metrics, divergence, and mixed precision."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sftctl.config.schedule import get_lr
from sftctl.data.mixture import MixedSource, Mixture
from sftctl.data.plan import examples_digest, plan_epoch
from sftctl.errors import ConfigError, TrainingDiverged
from sftctl.model.loss import TargetFacts
from sftctl.model.row_attention import own_attention
from sftctl.train.engine.build import build_state
from sftctl.train.engine.optim import build_optimizer
from sftctl.train.engine.state import Progress, TrainState
from sftctl.train.engine.step import MAX_OVERFLOWS
from sftctl.train.engine.weights import Weights
from tests.toys.data import ToyStore
from tests.toys.steps import (
    ALONE,
    STORE,
    equal,
    first_gradient,
    make_config,
    make_model,
    make_state,
    relative_distance,
    steps_of,
    take,
    weights_of,
)

TINY, HUGE = 1, 1 << 20  # micro_batch_tokens: a row each, and one micro-batch a step


# ---------------------------------------------------------------------------- the update


@given(
    st.lists(st.integers(2, 40), min_size=1, max_size=8),
    st.integers(1, 200),
    st.integers(0, 100),
)
@settings(max_examples=6, deadline=None)
def test_the_gradient_does_not_depend_on_the_cut(
    lengths: list[int], budget: int, seed: int
) -> None:
    store = ToyStore(lengths, STORE.vocab_size, seed)
    gradients = {}
    for micro_batch_tokens in (TINY, budget, HUGE):
        config = make_config(batch_size=8, micro_batch_tokens=micro_batch_tokens)
        [batch] = steps_of(config, store=store)
        state = make_state(config)
        take(state, batch, config)
        gradients[micro_batch_tokens] = first_gradient(state)
    for gradient in gradients.values():
        assert relative_distance(gradient, gradients[HUGE]) < 1e-5


def test_several_steps_are_the_same_under_another_cut() -> None:
    losses, moved = [], []
    for micro_batch_tokens in (TINY, HUGE):
        config = make_config(micro_batch_tokens=micro_batch_tokens)
        state = make_state(config)
        start = torch.nn.utils.parameters_to_vector(state.loss_module.parameters()).detach().clone()
        batches = [*steps_of(config), *steps_of(config, epoch=1)]
        losses.append([take(state, batch, config).loss for batch in batches])
        moved.append(
            torch.nn.utils.parameters_to_vector(state.loss_module.parameters()).detach() - start
        )
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert relative_distance(moved[0], moved[1]) < 1e-2


@torch.no_grad()
def mean_loss_of(model: Any, examples: list[int]) -> float:
    """Over all target tokens of the examples, one row at a time, by hand."""
    loss_sum, num_target_tokens = 0.0, 0
    for index in examples:
        ids = torch.from_numpy(STORE[index].input_ids).long()  # (T,)
        log_probabilities = model(input_ids=ids[None]).logits[0].log_softmax(-1)  # (T, V)
        for target in np.flatnonzero(STORE[index].loss_mask).tolist():
            loss_sum -= float(log_probabilities[target - 1, ids[target]])
            num_target_tokens += 1
    return loss_sum / num_target_tokens


@pytest.mark.parametrize("micro_batch_tokens", [TINY, 64, HUGE])
def test_the_loss_is_the_mean_over_the_target_tokens_of_the_whole_step(
    micro_batch_tokens: int,
) -> None:
    config = make_config(micro_batch_tokens=micro_batch_tokens)
    state = make_state(config)
    model, examples = state.loss_module.model, plan_epoch(STORE.lengths, 0, 0, 8)[0].tolist()
    with own_attention(model, state.own_attention):
        expected = mean_loss_of(model, examples)
    metrics = take(state, steps_of(config)[0], config)
    assert metrics.loss == pytest.approx(expected, rel=1e-5)


def test_accumulating_four_and_four_is_a_step_of_eight() -> None:
    results = []
    for settings_ in ({"batch_size": 8}, {"batch_size": 4, "accumulation_steps": 2}):
        config = make_config(**settings_)
        state = make_state(config)
        metrics = [take(state, batch, config) for batch in steps_of(config)]
        results.append(([(m.loss, m.examples_digest) for m in metrics], weights_of(state)))
    (one, one_weights), (other, other_weights) = results
    assert one == other and len(one) == 2
    assert equal(one_weights, other_weights)


def test_an_update_equals_that_of_a_plain_loop() -> None:
    config = make_config(micro_batch_tokens=HUGE)
    config = replace(config, optim=replace(config.optim, grad_clip=0.5))
    state, plain = make_state(config), make_state(config)
    model, optimizer = plain.loss_module, plain.optimizer
    for step, batch in enumerate(steps_of(config), start=1):
        [rows] = batch.micro_batches
        optimizer.zero_grad()
        loss = model(*rows.tensors)
        (loss / rows.num_target_tokens).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        assert norm > 0.5
        for group in optimizer.param_groups:
            group["lr"] = get_lr(step, 10, config.optim)
        optimizer.step()
        metrics = take(state, batch, config)
        assert metrics.grad_norm == pytest.approx(float(norm), rel=1e-6)
    before, after = weights_of(plain), weights_of(state)
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=1e-6, atol=1e-7)


def test_the_same_step_twice_gives_the_same_bits() -> None:
    config = make_config()
    states = [make_state(config, attention_dropout=0.5) for _ in range(2)]
    for state, noise in zip(states, (1, 2), strict=True):
        torch.manual_seed(noise)  # randomness is a function of seed, step and micro-batch alone
        for batch in steps_of(config):
            take(state, batch, config)
    assert equal(weights_of(states[0]), weights_of(states[1]))


def test_activation_checkpointing_changes_no_bit_and_stores_less() -> None:
    """With dropout, whose draws must come back in the second pass."""
    found = []
    for recomputed in (False, True):
        config = make_config(activation_checkpointing=recomputed)
        state, kept = make_state(config, attention_dropout=0.5), [0]

        def count(tensor: torch.Tensor, kept: list[int] = kept) -> torch.Tensor:
            kept[0] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            for batch in steps_of(config):
                take(state, batch, config)
        found.append((weights_of(state), kept[0]))
    (plain, all_kept), (again, some_kept) = found
    assert equal(plain, again)
    assert 0 < some_kept < all_kept


def test_a_model_without_activation_checkpointing_is_refused() -> None:
    model = make_model()
    model.supports_gradient_checkpointing = False
    with pytest.raises(
        ConfigError, match=r"^train\.activation_checkpointing: .*not support"
    ) as raised:
        build_state(model, make_config(activation_checkpointing=True), ALONE, longest_row=64)
    assert raised.value.hint is not None and "--micro-batch-tokens" in raised.value.hint


def test_every_layer_is_set_up_for_compiling() -> None:
    """Not called here: the first call compiles for a minute."""
    for compiles in (False, True):
        state = make_state(make_config(compile=compiles))
        layers = state.loss_module.model.model.layers
        assert [layer._compiled_call_impl is not None for layer in layers] == [compiles] * 2


def test_dropout_differs_by_the_seed_of_the_run() -> None:
    losses = []
    for seed in (0, 1):
        config = make_config(seed=seed)
        [batch, _] = steps_of(make_config())
        losses.append(take(make_state(config, attention_dropout=0.5), batch, config).loss)
    assert losses[0] != losses[1]


# ---------------------------------------------------------------------------- metrics


def test_the_metrics_count_the_step() -> None:
    config = make_config()
    state = make_state(config)
    first, second = (take(state, batch, config) for batch in steps_of(config))
    plan = plan_epoch(STORE.lengths, 0, 0, 8)
    for number, metrics in enumerate((first, second)):
        examples = plan[number]
        assert metrics.step == number + 1
        assert metrics.epoch == 0
        assert metrics.num_tokens == STORE.lengths[examples].sum()
        assert metrics.num_target_tokens == STORE.target_lengths[examples].sum()
        assert metrics.examples_digest == examples_digest(examples)
        assert metrics.learning_rate == get_lr(number + 1, 10, config.optim)
        assert metrics.data_wait_s == 0.25 < metrics.step_time_s
        assert metrics.peak_memory_bytes >= metrics.memory_bytes > 1 << 20
    assert state.progress == Progress(
        step=2, epoch=1, step_in_epoch=0, examples_seen=16, tokens_seen=int(STORE.lengths.sum())
    )


def test_padding_is_counted_separately() -> None:
    config = make_config(micro_batch_tokens=TINY)
    alone = take(make_state(config), steps_of(config)[0], config).num_padding_tokens
    config = make_config(micro_batch_tokens=HUGE)
    batch = steps_of(config)[0]
    metrics = take(make_state(config), batch, config)
    processed = sum(rows.input_ids.numel() for rows in batch.micro_batches)
    assert metrics.num_padding_tokens == processed - metrics.num_tokens > 0
    assert alone == 8 * 128 - metrics.num_tokens  # a row in each micro-batch


HALVES = Mixture((MixedSource("first", 0, 8), MixedSource("second", 8, 8)))


@pytest.mark.parametrize("mixture", [None, HALVES])
def test_the_host_reads_the_results_of_a_step_once_after_the_update_is_enqueued(
    monkeypatch: pytest.MonkeyPatch, mixture: Mixture | None
) -> None:
    """The host waits for a GPU when it reads from it. Only a CPU reads the lengths of rows."""
    read = []
    update = torch._fused_adamw_

    def updating(*arguments: Any, **named: Any) -> None:
        read.append("update")
        update(*arguments, **named)

    def counting(name: str) -> Any:
        original = getattr(torch.Tensor, name)

        def counted(tensor: torch.Tensor) -> Any:
            if tensor.dtype != torch.int32:  # row_lengths
                read.append(name)
            return original(tensor)

        return counted

    config = make_config(micro_batch_tokens=TINY)
    state, batch = make_state(config), steps_of(config)[0]
    for name in ("item", "tolist", "__bool__", "__int__", "__float__"):
        monkeypatch.setattr(torch.Tensor, name, counting(name))
    monkeypatch.setattr(torch, "_fused_adamw_", updating)
    take(state, batch, config, mixture)
    assert read == ["update", "update", "tolist"]  # matrices and vectors, which have no decay


# ---------------------------------------------------------------------------- divergence


def assert_diverges(state: TrainState, problem: str, dtype: str = "float32") -> None:
    """The error names step and examples, and nothing of the state has changed."""
    config = make_config(dtype=dtype, batch_size=2, micro_batch_tokens=HUGE)
    batch = steps_of(config)[0]
    tensors = {name: tensor.clone() for name, tensor in state.tensors().items()}
    progress = replace(state.progress)
    with pytest.raises(TrainingDiverged) as caught:
        take(state, batch, config)
    examples = sorted(plan_epoch(STORE.lengths, 0, 0, 2)[0].tolist())
    assert caught.value.message == (
        f"step 1 (epoch 1): {problem}; the weights are those of step 0; "
        f"examples of the step: {', '.join(map(str, examples))}"
    )
    assert caught.value.hint == (
        "look at these examples (prepare-data --show), or lower optim.learning_rate"
    )
    assert caught.value.exit_code == 5
    assert state.progress == progress
    for name, tensor in state.tensors().items():
        torch.testing.assert_close(tensor, tensors[name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_weight_that_is_nan_stops_the_run_and_the_first_one_is_named(dtype: str) -> None:
    config = make_config(dtype=dtype)
    state = make_state(config)
    with torch.no_grad():
        state.weights.named["model.layers.1.input_layernorm.weight"][0] = math.nan
        state.weights.named["model.norm.weight"][0] = math.nan
    state.weights.publish()
    with pytest.raises(TrainingDiverged) as caught:
        take(state, steps_of(config)[0], config)
    assert caught.value.message == (
        "step 1 (epoch 1): the loss is nan; the weights before the step are not finite: "
        "model.layers.1.input_layernorm.weight"
    )
    assert caught.value.exit_code == 5
    assert state.progress.step == 0


class RootOfNothing(torch.nn.Module):
    """A loss of 0 whose gradient is infinite, in the place of LossModule."""

    def __init__(self) -> None:
        super().__init__()
        self.model = torch.nn.Linear(1, 3, bias=False)
        torch.nn.init.zeros_(self.model.weight)
        self.targets: TargetFacts | None = None

    def forward(self, *micro_batch: torch.Tensor, **_: int) -> torch.Tensor:
        nothing = torch.zeros(micro_batch[3].shape)  # of each target
        self.targets = TargetFacts(nothing, nothing.bool(), nothing)
        return self.model.weight.sqrt().sum()


def test_a_gradient_that_is_not_finite_stops_the_run() -> None:
    toy: Any = RootOfNothing()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    optimizer = build_optimizer(dict(toy.model.named_parameters()), make_config().optim)
    assert_diverges(
        TrainState(toy, Weights(toy.model), optimizer, scaler, Progress(), "float32", "sdpa"),
        "the gradient norm is inf",
    )


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_skipped_step_counts_and_changes_no_weight(dtype: str) -> None:
    """The steps after it are those of a run that never had a gradient there."""
    config = make_config(dtype=dtype, on_nonfinite="skip")
    state = make_state(config)
    broken = state.loss_module.model.model.norm.weight
    good, tensors = broken[0].item(), {k: v.clone() for k, v in state.tensors().items()}
    with torch.no_grad():
        broken[0] = math.nan
    first, second = steps_of(config)
    metrics = take(state, first, config)
    assert metrics.skipped == "the loss is nan" and metrics.step == 1
    assert metrics.examples_digest == examples_digest(plan_epoch(STORE.lengths, 0, 0, 8)[0])
    assert state.progress.step == 1 and state.progress.examples_seen == 8
    with torch.no_grad():
        broken[0] = good
    assert equal(state.tensors(), tensors)
    metrics = take(state, second, config)
    assert metrics.skipped is None and math.isfinite(metrics.loss)
    assert not equal(state.tensors(), tensors)


def test_endless_overflows_stop_a_run_that_skips_steps_too() -> None:
    config = make_config(dtype="float16", on_nonfinite="skip")
    with pytest.raises(TrainingDiverged, match=f"overflowed {MAX_OVERFLOWS} times in a row"):
        take(with_scale(make_state(config), 2.0**100), steps_of(config)[0], config)


# ---------------------------------------------------------------------------- mixed precision


def with_scale(state: TrainState, scale: float) -> TrainState:
    state.scaler.load_state_dict(state.scaler.state_dict() | {"scale": scale})
    return state


def test_an_overflow_halves_the_scale_and_repeats_the_step() -> None:
    """The update is then that of a run whose scale was right from the start."""
    config = make_config(dtype="float16", batch_size=2, micro_batch_tokens=30)
    batches = steps_of(config)
    overflowing = with_scale(make_state(config), 2.0**24)
    metrics = take(overflowing, batches[0], config)
    scale = overflowing.scaler.get_scale()
    assert scale < 2.0**24 and math.log2(scale).is_integer()
    assert metrics.num_overflows == 24 - math.log2(scale)
    right = with_scale(make_state(config), scale)
    expected = take(right, batches[0], config)
    assert right.scaler.get_scale() == scale
    assert expected.num_overflows == 0
    assert (metrics.step, metrics.loss, metrics.grad_norm) == (1, expected.loss, expected.grad_norm)
    assert metrics.examples_digest == expected.examples_digest
    assert metrics.num_tokens == expected.num_tokens
    assert equal(weights_of(overflowing), weights_of(right))
    assert overflowing.progress.step == 1


def test_endless_overflows_stop_the_run() -> None:
    state = with_scale(make_state(make_config(dtype="float16")), 2.0**100)
    assert_diverges(state, f"float16 overflowed {MAX_OVERFLOWS} times in a row", "float16")


def test_an_overflow_restarts_the_count_to_a_larger_scale() -> None:
    """As in GradScaler. Otherwise the scale would grow back at once and overflow again."""
    config = make_config(dtype="float16", batch_size=2)
    state = with_scale(make_state(config), 2.0**24)
    state.scaler.load_state_dict(state.scaler.state_dict() | {"_growth_tracker": 1000})
    take(state, steps_of(config)[0], config)
    assert state.scaler.get_scale() < 2.0**24
    assert state.scaler.state_dict()["_growth_tracker"] == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_learns_like_float32(dtype: str) -> None:
    losses = {}
    for each in ("float32", dtype):
        config = make_config(dtype=each)
        state = make_state(config)
        batches = [batch for epoch in range(2) for batch in steps_of(config, epoch)]
        losses[each] = [take(state, batch, config).loss for batch in batches]
        assert {weight.dtype for weight in state.weights.named.values()} == {torch.float32}
    assert losses[dtype] == pytest.approx(losses["float32"], rel=0.02)
    assert losses[dtype] != losses["float32"]
    assert losses[dtype][-1] < losses[dtype][0]


def test_only_float16_is_scaled() -> None:
    enabled = {
        dtype: make_state(make_config(dtype=dtype)).scaler.is_enabled()
        for dtype in ("float32", "bfloat16", "float16")
    }
    assert enabled == {"float32": False, "bfloat16": False, "float16": True}
