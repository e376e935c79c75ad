"""A tiny model, the steps of a store of random examples, and a step trained by hand."""

from typing import Any

import torch

from sftctl.config.optim import OptimConfig
from sftctl.config.schema import RunConfig, TrainConfig
from sftctl.data.loading.loader import LoaderSettings, StepLoader
from sftctl.data.loading.microbatch import StepBatch
from sftctl.data.mixture import Mixture
from sftctl.data.step_shape import StepShape
from sftctl.metrics import StepMetrics
from sftctl.model.presets import preset_config
from sftctl.train.engine.build import build_state
from sftctl.train.engine.state import TrainState
from sftctl.train.engine.step import StepRules, train_step
from sftctl.world import World
from tests.toys.data import ToyStore

ALONE = World(0, 0, 1, torch.device("cpu"))
STORE = ToyStore([9, 30, 4, 17, 22, 6, 12, 3, 41, 15, 8, 27, 5, 19, 11, 33], vocab_size=61)
BETA1 = 0.9
ROUTER_COEFFICIENT = 0.5  # of the auxiliary loss of a mixture of experts; large
_MIXTURE_SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 16, "intermediate_size": 24, "moe_intermediate_size": 24,
    "num_experts_per_tok": 2, "router_aux_loss_coef": ROUTER_COEFFICIENT,
}  # fmt: skip


def make_config(**train: Any) -> RunConfig:
    """No clipping and float32, unless asked for."""
    settings: dict[str, Any] = {
        "dtype": "float32",
        "batch_size": 8,
        "micro_batch_tokens": 64,
    } | train
    return RunConfig(
        optim=OptimConfig(learning_rate=1e-2, grad_clip=0.0, beta1=BETA1),
        train=TrainConfig(**settings),
    )


def make_model(**changes: object) -> Any:
    """The tiny preset, still smaller, with these changes of its configuration."""
    return _from_preset("tiny", {"hidden_size": 32, "intermediate_size": 48} | changes)


def make_mixture(**changes: object) -> Any:
    """A small mixture of experts."""
    return _from_preset("minimind-3-moe", _MIXTURE_SIZES | changes)


def _from_preset(name: str, changes: dict[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = preset_config(name, STORE.vocab_size)
    config.update(changes)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def make_state(config: RunConfig, **model: object) -> TrainState:
    return build_state(make_model(**model), config, ALONE, longest_row=64)


def steps_of(config: RunConfig, epoch: int = 0, store: ToyStore = STORE) -> list[StepBatch]:
    """The steps of one epoch, cut for one rank."""
    shape = StepShape(
        seed=config.train.seed,
        global_batch_size=config.train.global_batch_size,
        micro_batch_tokens=config.train.pass_tokens,
        cut_for_ranks=1,
        rank=0,
        world_size=1,
    )
    return list(StepLoader(store, shape, LoaderSettings()).steps(epoch))


def take(
    state: TrainState, batch: StepBatch, config: RunConfig, mixture: Mixture | None = None
) -> StepMetrics:
    """Train one step of a run of ten, with two steps an epoch."""
    skips = config.train.on_nonfinite == "skip"
    rules = StepRules(config.optim, config.train.seed, 10, 2, skips, mixture)
    return train_step(state, batch, rules, ALONE, data_wait_s=0.25)


def weights_of(state: TrainState) -> dict[str, torch.Tensor]:
    """A copy of the weights."""
    return {k: v.clone() for k, v in state.loss_module.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def first_gradient(state: TrainState) -> torch.Tensor:
    """The unclipped gradient of the first step as one vector, from AdamW's first moment."""
    assert state.progress.step == 1
    moments = [
        tensor.flatten() for name, tensor in state.tensors().items() if name.endswith(".exp_avg")
    ]
    return torch.cat(moments) / (1 - BETA1)


def relative_distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())
