"""Frozen parameters and factors of the learning rate: in steps, runs and resumes."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from sftctl.checkpoint.directory import list_checkpoints
from sftctl.config.adapter import AdapterConfig
from sftctl.config.schema import RunConfig
from sftctl.errors import ConfigError, IncompatibleCheckpoint
from sftctl.model.adapter.lora import add_adapter
from sftctl.runs.directory import RunDir
from sftctl.train.engine.build import build_state
from sftctl.train.preflight.dry_run import plan_run
from sftctl.train.resume import ResumeRequest
from sftctl.train.run import run_training
from tests.toys.runs import (
    assert_same_end,
    events_named,
    stored_tensors,
    toy_config,
)
from tests.toys.steps import (
    ALONE,
    make_config,
    make_model,
    make_state,
    steps_of,
    take,
    weights_of,
)

FROZEN = ["embeddings", "layers[:1]"]


def with_optim(config: RunConfig, **optim: Any) -> RunConfig:
    return replace(config, optim=replace(config.optim, **optim))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("reduction", ["plain", "exact"])
@pytest.mark.parametrize("tied", [True, False])
def test_what_is_trained_moves_as_in_a_full_step_and_the_rest_stays(
    dtype: str, reduction: str, tied: bool
) -> None:
    config = make_config(dtype=dtype, reduction=reduction)
    frozen = make_config(dtype=dtype, reduction=reduction, freeze=FROZEN)
    full, part = (make_state(c, tie_word_embeddings=tied) for c in (config, frozen))
    batch = steps_of(config)[0]
    before = {name: tensor.clone() for name, tensor in part.weights.state_dict().items()}
    take(full, batch, config)
    take(part, batch, frozen)
    trained = {name for name, weight in part.weights.named.items() if weight.requires_grad}
    assert "model.layers.1.mlp.up_proj.weight" in trained
    assert trained.isdisjoint({"model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"})
    expected, after = full.weights.state_dict(), part.weights.state_dict()
    for name in before:
        is_head = name == "lm_head.weight" and not tied
        moved = name in trained or is_head
        assert torch.equal(after[name], (expected if moved else before)[name]), name
    moments = {name for name in part.tensors() if name.startswith("optimizer.")}
    assert moments == {
        f"optimizer.{n}.{k}" for n in trained for k in ("step", "exp_avg", "exp_avg_sq")
    }
    num_trained = sum(part.weights.named[name].numel() for name in trained)
    assert part.weights._flat is not None
    assert part.weights._flat.numel() == num_trained  # what the ranks sum


@pytest.mark.parametrize("train_only", [["head"], ["embeddings"], ["layers[1:]"]])
def test_any_part_alone_can_be_trained_untied(train_only: list[str]) -> None:
    config = make_config(train_only=train_only, activation_checkpointing=True)
    state = make_state(config, tie_word_embeddings=False)
    before = {name: tensor.clone() for name, tensor in state.weights.state_dict().items()}
    take(state, steps_of(config)[0], config)
    after = state.weights.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name, weight in state.weights.named.items() if weight.requires_grad} == changed


def test_a_factor_multiplies_the_learning_rate_of_its_parameters() -> None:
    """AdamW's update is proportional to the learning rate, without weight decay."""
    plain = with_optim(make_config(), weight_decay=0.0)
    grouped = with_optim(plain, groups={"layers[:1]": 0.25, "model.norm": 0})
    batch, moved = steps_of(plain)[0], []
    for config in (plain, grouped):
        state = make_state(config)
        before = weights_of(state)
        assert take(state, batch, config).learning_rate == pytest.approx(1e-2, rel=0.1)
        moved.append({name: t - before[name] for name, t in weights_of(state).items()})
    for name, full in moved[0].items():
        factor = 0.25 if ".layers.0." in name else 0.0 if name == "model.model.norm.weight" else 1.0
        torch.testing.assert_close(moved[1][name], full * factor, rtol=2e-2, atol=1e-7)


def test_a_run_saves_the_whole_model_and_resumes_to_the_bit(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "train__freeze": FROZEN,
        "optim__groups": {"model.norm": 0.5},
        "train__max_steps": 4,
    }
    run_training(toy_config(tmp_path, **settings))
    run = tmp_path / "run"
    [started] = events_named(run, "started")
    assert 0 < started["num_trained"] < started["num_parameters"]
    tensors = stored_tensors(list_checkpoints(run / "checkpoints")[-1])
    final = load_file(run / "final" / "model.safetensors")
    assert {
        name.removeprefix("model.") for name in tensors if name.startswith("model.")
    } >= final.keys()
    assert not any(name.startswith("optimizer.model.embed") for name in tensors)
    plan = plan_run(toy_config(tmp_path, "dry", **settings))
    assert plan.num_trained == started["num_trained"]
    assert plan.checkpoint_bytes == sum(t.numel() * t.element_size() for t in tensors.values()) - (
        4 * sum(name.endswith(".step") for name in tensors)
    )

    again = tmp_path / "again"
    shutil.copytree(run, again)
    run_training(RunDir.open(again).config(), ResumeRequest(again, step=2))
    assert_same_end(again, run)

    changes: list[tuple[str, Any, str]] = [
        ("freeze", ["embeddings"], "train.freeze: .* the optimizer's state is that of other"),
        ("train_only", ["layers[1:]"], "train.train_only: .* is that of other parameters"),
    ]
    for name, value, message in changes:
        opened = RunDir.open(again)
        config = RunDir.open(run).config()
        opened.write_config(replace(config, train=replace(config.train, **{name: value})))
        with pytest.raises(IncompatibleCheckpoint, match=message):
            run_training(config, ResumeRequest(again, step=2))


def test_a_pattern_without_a_match_stops_a_run_before_anything_is_made(tmp_path: Path) -> None:
    for key in ("train__freeze", "train__train_only"):
        with pytest.raises(ConfigError, match=r"nothing\* matches no parameter"):
            run_training(toy_config(tmp_path, **dict[str, Any]({key: ["nothing*"]})))
    with pytest.raises(ConfigError, match=r"optim.groups: nothing\* matches no parameter"):
        run_training(toy_config(tmp_path, optim__groups={"nothing*": 0.1}))
    assert not (tmp_path / "run").exists()


SETTINGS_OF_COST: dict[str, tuple[dict[str, Any], float, float]] = {
    # the share of a full step's multiply-adds, at least and at most
    "everything": ({}, 1.0, 1.0),
    "an adapter": ({"lora": True}, 0.55, 0.75),
    "no embeddings, not the first of two blocks": ({"freeze": FROZEN}, 0.6, 0.75),
    "the last block alone": ({"train_only": ["layers[1:]"]}, 0.6, 0.75),
    "the head alone": ({"train_only": ["head"]}, 0.3, 0.6),
}


def test_no_gradient_of_frozen_weights_is_computed() -> None:
    """Counts the multiply-adds of a step: forward, gradients of inputs, gradients of weights."""
    flops = {}
    for name, (settings, least, most) in SETTINGS_OF_COST.items():
        train = {key: value for key, value in settings.items() if key != "lora"}
        config = make_config(**train)
        model = make_model(tie_word_embeddings=False)
        if "lora" in settings:
            add_adapter(model, AdapterConfig(lora=True, rank=2), 0)
        state = build_state(model, config, ALONE, longest_row=41)
        batch = steps_of(config)[0]
        with FlopCounterMode(display=False) as counter:
            take(state, batch, config)
        flops[name] = counter.get_total_flops()
        assert least <= flops[name] / flops["everything"] <= most, (name, flops)
        trained = [p for p in state.loss_module.parameters() if p.requires_grad]
        frozen = [p for p in state.loss_module.parameters() if not p.requires_grad]
        assert all(parameter.grad is None for parameter in frozen)
        assert any(parameter.grad is not None for parameter in trained)
