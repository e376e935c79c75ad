"""A tiny real model, steps of random examples, and a step taken."""

from typing import Any

import torch

from sftctl.config.schema import OptimConfig, RunConfig, TrainConfig
from sftctl.data.loader import LoaderSettings, StepLoader, StepShape
from sftctl.data.microbatch import StepBatch
from sftctl.metrics import StepMetrics
from sftctl.model.presets import preset_config
from sftctl.train.engine.state import TrainState, build_state
from sftctl.train.engine.step import StepRules, train_step
from sftctl.world import World
from tests.toys.data import ToyStore

ALONE = World(0, 0, 1, torch.device("cpu"))
STORE = ToyStore([9, 30, 4, 17, 22, 6, 12, 3, 41, 15, 8, 27, 5, 19, 11, 33], vocab_size=61)
BETA1 = 0.9


def make_config(**train: Any) -> RunConfig:
    """No clipping and float32, unless asked for."""
    settings = {"dtype": "float32", "batch_size": 8, "micro_batch_tokens": 64} | train
    return RunConfig(
        optim=OptimConfig(learning_rate=1e-2, grad_clip=0.0, beta1=BETA1),
        train=TrainConfig(**settings),
    )


def make_model(**changes: object) -> Any:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = preset_config("tiny", STORE.vocab_size)
    config.update({"hidden_size": 32, "intermediate_size": 48} | changes)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def make_state(config: RunConfig, **model: object) -> TrainState:
    return build_state(make_model(**model), config, ALONE)


def steps_of(config: RunConfig, epoch: int = 0, store: ToyStore = STORE) -> list[StepBatch]:
    shape = StepShape(
        seed=config.train.seed,
        global_batch_size=config.train.global_batch_size,
        micro_batch_tokens=config.train.micro_batch_tokens,
        cut_for_ranks=1,
        rank=0,
        world_size=1,
    )
    return list(StepLoader(store, shape, LoaderSettings()).steps(epoch))


def take(state: TrainState, batch: StepBatch, config: RunConfig) -> StepMetrics:
    """One step of ten, with two in an epoch."""
    skips = config.train.on_nonfinite == "skip"
    rules = StepRules(config.optim, config.train.seed, 10, 2, skips_nonfinite=skips)
    return train_step(state, batch, rules, ALONE, data_wait_s=0.25)


def weights_of(state: TrainState) -> dict[str, torch.Tensor]:
    """Copies."""
    return {k: v.clone() for k, v in state.loss_module.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def first_gradient(state: TrainState) -> torch.Tensor:
    """The gradient of the first step, unclipped, as one vector: AdamW's first moment tells it."""
    assert state.progress.step == 1
    moments = [
        tensor.flatten() for name, tensor in state.tensors().items() if name.endswith(".exp_avg")
    ]
    return torch.cat(moments) / (1 - BETA1)


def relative_distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())
