"""What a rank does in the tests of DDP, FSDP and exact sums: steps, failures, a save, and runs.

Functions that take a World run inside one. The others open their own.
"""

import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from sftctl import environment
from sftctl.checkpoint.load import load_tensors
from sftctl.checkpoint.save import save_checkpoint
from sftctl.config.schema import RunConfig
from sftctl.data.loading.loader import LoaderSettings, StepLoader
from sftctl.data.step_shape import StepShape
from sftctl.errors import TrainingDiverged
from sftctl.metrics import StepMetrics
from sftctl.runs.directory import RunDir
from sftctl.train.engine.build import build_state
from sftctl.train.engine.evaluate import Evaluation, evaluate
from sftctl.train.engine.state import TrainState
from sftctl.train.engine.step import StepRules, train_step
from sftctl.train.resume import ResumeRequest
from sftctl.train.run import run_training
from sftctl.train.stop import StopRequest
from sftctl.world import World, local_part
from tests.toys.checkpoints import make_manifest
from tests.toys.data import ToyStore
from tests.toys.runs import toy_config
from tests.toys.steps import STORE, make_config, make_model

BATCH_SIZE = 5  # of 16 examples: the fourth and last step of an epoch has one
STEPS_PER_EPOCH = 4
NUM_STEPS = 5
VALIDATION = [ToyStore([7, 30, 12, 19][:count], STORE.vocab_size) for count in (1, 2, 4)]
SMALL_HEADS = {"head_dim": 4}  # norms of four weights: one of three ranks holds none of them
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clipped": {"grad_clip": 0.5},
    "frozen": {"freeze": ["embeddings", "layers[:1]"]},
    "bfloat16": {"dtype": "bfloat16"},
    "float16": {"dtype": "float16"},
}

Arrays = dict[str, npt.NDArray[np.float32]]
Facts = dict[str, float]


# ---------------------------------------------------------------------------- building blocks


def config_of(
    strategy: str,
    grad_clip: float = 0.0,
    dtype: str = "float32",
    freeze: list[str] | None = None,
) -> RunConfig:
    config = make_config(strategy=strategy, dtype=dtype, batch_size=BATCH_SIZE, freeze=freeze)
    groups = {"*.mlp.*": 0.5} if freeze else None
    return replace(config, optim=replace(config.optim, grad_clip=grad_clip, groups=groups))


def state_of(config: RunConfig, world: World) -> TrainState:
    return build_state(make_model(**SMALL_HEADS), config, world, longest_row=64)


def shape_of(state: TrainState, config: RunConfig, world: World) -> StepShape:
    """Steps cut for three ranks, whatever the world's size."""
    return StepShape(
        seed=config.train.seed,
        global_batch_size=config.train.global_batch_size,
        micro_batch_tokens=config.train.pass_tokens,
        cut_for_ranks=3,
        rank=world.rank,
        world_size=world.world_size,
        lockstep=state.is_sharded,
    )


def train_to(state: TrainState, config: RunConfig, world: World, last: int) -> list[StepMetrics]:
    """Train from the state's step to step `last`."""
    loader = StepLoader(STORE, shape_of(state, config, world), LoaderSettings())
    rules = StepRules(config.optim, config.train.seed, 10, STEPS_PER_EPOCH)
    batches = [batch for epoch in range(5) for batch in loader.steps(epoch)]
    todo = batches[state.progress.step : last]
    return [train_step(state, batch, rules, world, 0.0) for batch in todo]


def full_tensors(state: TrainState) -> Arrays:
    """A copy of every tensor of the state, put together from all ranks."""
    return {
        name: (t.full_tensor() if isinstance(t, DTensor) else t).detach().clone().numpy()
        for name, t in state.tensors().items()
    }


def are_equal(one: Arrays, other: Arrays) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[n], other[n]) for n in one)


def distance(one: Arrays, other: Arrays, suffix: str) -> float:
    """The relative L2 distance of all tensors with that suffix, taken as one vector."""
    names = [name for name in one if name.endswith(suffix)]
    first, second = (np.concatenate([each[n].ravel() for n in names]) for each in (one, other))
    return float(np.linalg.norm(first - second) / np.linalg.norm(second))


def facts_of(metrics: StepMetrics) -> Facts:
    """A step's metrics without times."""
    names = ("loss", "grad_norm", "num_tokens", "num_target_tokens", "examples_digest")
    return {name: getattr(metrics, name) for name in names}


# ---------------------------------------------------------------------------- steps


@dataclass(frozen=True, slots=True)
class Steps:
    """NUM_STEPS steps under one strategy."""

    first_moments: Arrays  # the tensors after the first step
    movement: Arrays  # what all steps have added to the tensors
    facts: list[Facts]
    validation: list[Evaluation | None]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The same steps under FSDP and under DDP."""

    fsdp: Steps
    ddp: Steps

    @property
    def gradient_distance(self) -> float:
        """Of the first step: AdamW's first moment is then the gradient, times a constant."""
        return distance(self.fsdp.first_moments, self.ddp.first_moments, ".exp_avg")

    @property
    def update_distance(self) -> float:
        return distance(self.fsdp.movement, self.ddp.movement, ".weight")


def train_steps(strategy: str, world: World, **settings: Any) -> Steps:
    config = config_of(strategy, **settings)
    state = state_of(config, world)
    start = full_tensors(state)
    metrics = train_to(state, config, world, 1)
    first = full_tensors(state)
    metrics += train_to(state, config, world, NUM_STEPS)
    end = full_tensors(state)
    shape = shape_of(state, config, world)
    validation = [evaluate(state, store, shape, world, StopRequest()) for store in VALIDATION]
    movement = {name: end[name] - start[name] for name in start}
    return Steps(first, movement, [facts_of(line) for line in metrics], validation)


@dataclass(frozen=True, slots=True)
class Shares:
    """The count of numbers of a sharded state on this rank, in all, and the count of groups."""

    num_here: int
    num_in_all: int
    num_groups: int


def count_shares(world: World) -> Shares:
    state = state_of(config_of("fsdp"), world)
    tensors = [t for t in state.tensors().values() if t.dim()]
    assert all(isinstance(t, DTensor) for t in tensors)
    groups = sum(isinstance(module, FSDPModule) for module in state.loss_module.modules())
    num_here = sum(local_part(t).numel() for t in tensors)
    return Shares(num_here, sum(t.numel() for t in tensors), groups)


# ---------------------------------------------------------------------------- failures


def break_gradients(state: TrainState, num_passes: int, world: World) -> None:
    """Make the gradients of the next passes infinite, on the last rank alone."""
    left = iter(range(num_passes if world.rank == world.world_size - 1 else 0))

    def hook(module: Any, inputs: Any, loss: torch.Tensor) -> None:
        if next(left, None) is not None:
            loss.register_hook(lambda gradient: gradient * math.inf)  # type: ignore[no-untyped-call]

    state.loss_module.register_forward_hook(hook)


@dataclass(frozen=True, slots=True)
class Overflow:
    """A float16 step that overflowed once, and one whose scale was right from the start."""

    scale: float
    step: int
    facts: Facts
    expected: Facts
    is_same_state: bool


def overflow_once(world: World) -> Overflow:
    config = config_of("fsdp", dtype="float16")
    state, right = state_of(config, world), state_of(config, world)
    break_gradients(state, 1, world)
    right.scaler.load_state_dict(right.scaler.state_dict() | {"scale": 2.0**15})
    [metrics], [expected] = (train_to(each, config, world, 1) for each in (state, right))
    is_same = are_equal(full_tensors(state), full_tensors(right))
    scale, step = state.scaler.get_scale(), state.progress.step
    return Overflow(scale, step, facts_of(metrics), facts_of(expected), is_same)


@dataclass(frozen=True, slots=True)
class Divergence:
    """The error of a step whose gradient is not finite, and whether it changed the state."""

    message: str
    is_unchanged: bool


def diverge(config: RunConfig, world: World) -> Divergence:
    state = state_of(config, world)
    before = full_tensors(state)
    break_gradients(state, 100, world)
    try:
        message = f"no error, but {train_to(state, config, world, 1)}"
    except TrainingDiverged as error:
        message = error.message
    return Divergence(message, are_equal(before, full_tensors(state)))


# ---------------------------------------------------------------------------- a save


@dataclass(frozen=True, slots=True)
class Saved:
    """A sharded state that was saved and read again."""

    tensors: Arrays
    is_restored: bool  # into a state of the same world
    num_norm_weights: int  # of four in a norm, on this rank


def save_and_load(world: World, folder: Path) -> Saved:
    config = config_of("fsdp")
    state, fresh = state_of(config, world), state_of(config, world)
    train_to(state, config, world, 2)
    for each in (state, fresh):  # a pass without backward: FSDP keeps the root's weights gathered
        evaluate(each, STORE, shape_of(each, config, world), world, StopRequest())
    path = save_checkpoint(folder / "checkpoints", state.tensors(), make_manifest(1), world)
    load_tensors(path, fresh.tensors(), world)
    norm = state.loss_module.model.model.layers[0].self_attn.q_norm.weight
    tensors = full_tensors(state)
    is_restored = are_equal(tensors, full_tensors(fresh))
    return Saved(tensors, is_restored, local_part(norm).numel())


# ---------------------------------------------------------------------------- runs


def run_config(folder: Path, name: str, **overrides: object) -> RunConfig:
    """Eight steps, five an epoch, the last one short; validation on three examples."""
    validated = {"data__val_fraction": 0.1, "train__eval_interval": 2, "train__max_steps": 8}
    return toy_config(folder, name, **validated, **overrides)


def train_run(folder: Path, name: str, **train: object) -> None:
    """Train a new run with these settings of `train`."""
    settings = {f"train__{key}": value for key, value in train.items()}
    run_training(run_config(folder, name, **settings))


def resume_copy(folder: Path, name: str, source: str, step: int, **train: Any) -> None:
    """Copy run `source` and resume the copy at `step`, with these settings of `train`."""
    if environment.rank() == 0:
        shutil.copytree(folder / source, folder / name)
        run = RunDir.open(folder / name)
        config = run.config()
        run.write_config(replace(config, train=replace(config.train, **train)))
    run_training(run_config(folder, name), ResumeRequest(folder / name, step))
