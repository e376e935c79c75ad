"""What a rank does for test_strategy: the same steps under DDP and FSDP, runs and their resumes."""

import math
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from sftctl.checkpoint.load import load_tensors
from sftctl.checkpoint.save import save_checkpoint
from sftctl.config.schema import RunConfig
from sftctl.data.loader import LoaderSettings, StepLoader, StepShape
from sftctl.environment import rank as rank_here
from sftctl.errors import TrainingDiverged
from sftctl.metrics import StepMetrics
from sftctl.runs.directory import RunDir
from sftctl.train.engine.evaluate import evaluate
from sftctl.train.engine.state import TrainState, build_state
from sftctl.train.engine.step import StepRules, train_step
from sftctl.train.resume import ResumeRequest
from sftctl.train.run import run_training
from sftctl.train.stop import StopRequest
from sftctl.world import World, start_world
from tests.toys.checkpoints import make_manifest
from tests.toys.data import ToyStore
from tests.toys.ranks import free_port, run_ranks
from tests.toys.runs import toy_config
from tests.toys.steps import STORE, make_config, make_model

BATCH_SIZE = 5  # of 16 examples: the fourth and last step of an epoch holds one
NUM_STEPS = 5
VALIDATION = [ToyStore([7, 30, 12, 19][:count], STORE.vocab_size) for count in (1, 2, 4)]
HEADS = {"head_dim": 4}  # norms of four weights: of three ranks one holds none of them
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clipped": {"grad_clip": 0.5},
    "bfloat16": {"dtype": "bfloat16"},
    "float16": {"dtype": "float16"},
}
COMPARED = {2: tuple(SETTINGS), 3: ("clipped",)}

Arrays = dict[str, npt.NDArray[np.float32]]
Found = dict[str, Any]
Run = tuple[Callable[..., None], tuple[Any, ...], dict[str, Any]]  # function, arguments, settings
Runs = list[tuple[Any, ...]]  # each with the port of its world before it


def steps_then_runs(steps: Callable[[World, Path], Found], folder: Path, runs: Runs) -> Found:
    """Everything that one start of ranks is good for: steps in one world, then runs."""
    with start_world("cpu") as world:
        found = steps(world, folder)
    for port, function, arguments, settings in runs:
        os.environ["MASTER_PORT"] = str(port)  # the last world may still be leaving its own
        function(folder, *arguments, **settings)
    return found


def do_on_ranks(
    num_ranks: int, steps: Callable[[World, Path], Found], folder: Path, *runs: Run
) -> list[Found]:
    """`steps` and then `runs` on each rank; what the steps found there."""
    with_ports = [(free_port(), *run) for run in runs]
    return run_ranks(num_ranks, steps_then_runs, steps, folder, with_ports)


def all_steps(world: World, folder: Path) -> Found:
    """What test_strategy asks of one world."""
    return {
        "compared": compared(world),
        "held": held(world),
        "overflown": overflown(world),
        "diverged": diverged(config_of("fsdp"), world),
        "saved": saved(world, folder / f"on-{world.world_size}"),
    }


# ---------------------------------------------------------------------------- steps


def config_of(strategy: str, grad_clip: float = 0.0, dtype: str = "float32") -> RunConfig:
    config = make_config(strategy=strategy, dtype=dtype, batch_size=BATCH_SIZE)
    return replace(config, optim=replace(config.optim, grad_clip=grad_clip))


def state_of(config: RunConfig, world: World) -> TrainState:
    return build_state(make_model(**HEADS), config, world)


def shape_of(state: TrainState, config: RunConfig, world: World) -> StepShape:
    """Cut for three ranks, however many there are."""
    return StepShape(
        seed=config.train.seed,
        global_batch_size=config.train.global_batch_size,
        micro_batch_tokens=config.train.micro_batch_tokens,
        cut_for_ranks=3,
        rank=world.rank,
        world_size=world.world_size,
        lockstep=state.lockstep,
    )


def take_steps(state: TrainState, config: RunConfig, world: World, stop: int) -> list[StepMetrics]:
    """From where the state stands to step `stop`, at four steps an epoch."""
    loader = StepLoader(STORE, shape_of(state, config, world), LoaderSettings())
    rules = StepRules(config.optim, config.train.seed, total_steps=10, steps_per_epoch=4)
    batches = [batch for epoch in range(5) for batch in loader.steps(epoch)]
    todo = batches[state.progress.step : stop]
    return [train_step(state, batch, rules, world, 0.0) for batch in todo]


def whole(state: TrainState) -> Arrays:
    """Every tensor of the state, put together from all ranks, as a copy."""
    return {
        name: (t.full_tensor() if isinstance(t, DTensor) else t).detach().clone().numpy()
        for name, t in state.tensors().items()
    }


def same(one: Arrays, other: Arrays) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[n], other[n]) for n in one)


def distance(one: Arrays, other: Arrays, of: str) -> float:
    """Relative, L2, over all tensors of that kind together."""
    names = [name for name in one if name.endswith(of)]
    first, second = (np.concatenate([each[n].ravel() for n in names]) for each in (one, other))
    return float(np.linalg.norm(first - second) / np.linalg.norm(second))


def told(metrics: StepMetrics) -> Found:
    """What a step tells, without times."""
    names = ("loss", "grad_norm", "num_tokens", "num_target_tokens", "examples_digest")
    return {name: getattr(metrics, name) for name in names}


def steps_under(strategy: str, world: World, **settings: Any) -> Found:
    """The first step's moments, and metrics, movement and validation of all steps."""
    config = config_of(strategy, **settings)
    state = state_of(config, world)
    start = whole(state)
    metrics = take_steps(state, config, world, 1)
    moments = whole(state)
    metrics += take_steps(state, config, world, NUM_STEPS)
    end = whole(state)
    shape = shape_of(state, config, world)
    validation = [evaluate(state, store, shape, world, StopRequest()) for store in VALIDATION]
    moved = {name: end[name] - start[name] for name in start}
    lines = [told(line) for line in metrics]
    return {"moments": moments, "metrics": lines, "moved": moved, "validation": validation}


def compared(world: World) -> Found:
    """FSDP beside DDP: how far they are apart, and what they tell."""
    found = {}
    for name in COMPARED[world.world_size]:
        ours, theirs = (steps_under(s, world, **SETTINGS[name]) for s in ("fsdp", "ddp"))
        found[name] = {
            "gradient": distance(ours["moments"], theirs["moments"], ".exp_avg"),
            "update": distance(ours["moved"], theirs["moved"], ".weight"),
            "metrics": (ours["metrics"], theirs["metrics"]),
            "validation": (ours["validation"], theirs["validation"]),
        }
    return found


def held(world: World) -> tuple[int, int, int]:
    """Numbers of a sharded state on this rank and in all, and how many parts are sharded as one."""
    state = state_of(config_of("fsdp"), world)
    tensors = [t for t in state.tensors().values() if t.dim()]
    assert all(isinstance(t, DTensor) for t in tensors)
    groups = sum(isinstance(module, FSDPModule) for module in state.loss_module.modules())
    return sum(t.to_local().numel() for t in tensors), sum(t.numel() for t in tensors), groups


# ---------------------------------------------------------------------------- mishaps


def spoil(state: TrainState, times: int, world: World) -> None:
    """On the last rank alone the gradients of the next `times` passes are no numbers."""
    left = iter(range(times if world.rank == world.world_size - 1 else 0))

    def hook(module: Any, inputs: Any, loss: torch.Tensor) -> None:
        if next(left, None) is not None:
            loss.register_hook(lambda gradient: gradient * math.inf)

    state.loss_module.register_forward_hook(hook)


def overflown(world: World) -> Found:
    """A float16 step whose gradients overflow once, beside one whose scale was right at once."""
    config = config_of("fsdp", dtype="float16")
    state, right = state_of(config, world), state_of(config, world)
    spoil(state, 1, world)
    right.scaler.load_state_dict(right.scaler.state_dict() | {"scale": 2.0**15})
    [metrics], [expected] = (take_steps(each, config, world, 1) for each in (state, right))
    return {
        "scale": state.scaler.get_scale(),
        "step": state.progress.step,
        "metrics": (told(metrics), told(expected)),
        "same": same(whole(state), whole(right)),
    }


def diverged(config: RunConfig, world: World) -> tuple[str, bool]:
    """A step whose gradients are no numbers: the error, and whether the state is as before.

    (The error, or what the step told if it went through.)
    """
    state = state_of(config, world)
    before = whole(state)
    spoil(state, 100, world)
    try:
        message = str(take_steps(state, config, world, 1))
    except TrainingDiverged as error:
        message = error.message
    return message, same(before, whole(state))


def saved(world: World, folder: Path) -> tuple[Arrays, bool, int]:
    """A sharded state as it went into a checkpoint, whether a fresh one read the same from it,
    and how many weights of a norm of four this rank holds.
    """
    config = config_of("fsdp")
    state, fresh = state_of(config, world), state_of(config, world)
    take_steps(state, config, world, 2)
    for each in (state, fresh):  # without a backward pass the root's weights stay whole
        evaluate(each, STORE, shape_of(each, config, world), world, StopRequest())
    path = save_checkpoint(folder / "checkpoints", state.tensors(), make_manifest(1), world)
    load_tensors(path, fresh.tensors(), world)
    norm = state.loss_module.model.model.layers[0].self_attn.q_norm.weight
    return whole(state), same(whole(state), whole(fresh)), norm.to_local().numel()


# ---------------------------------------------------------------------------- runs


def run_config(folder: Path, name: str, **overrides: object) -> RunConfig:
    """Eight steps, five an epoch, the last one short; validation on three examples."""
    validated = {"data__val_fraction": 0.1, "train__eval_interval": 2, "train__max_steps": 8}
    return toy_config(folder, name, **validated, **overrides)


def start(folder: Path, name: str, **train: object) -> None:
    """A new run, with these settings of `train`."""
    settings = {f"train__{key}": value for key, value in train.items()}
    run_training(run_config(folder, name, **settings))


def go_on(folder: Path, name: str, source: str, step: int, **train: str) -> None:
    """A copy of run `source` goes on from `step`, with these settings of `train`."""
    if rank_here() == 0:
        shutil.copytree(folder / source, folder / name)
        run = RunDir.open(folder / name)
        config = run.config()
        run.write_config(replace(config, train=replace(config.train, **train)))
    run_training(run_config(folder, name), ResumeRequest(folder / name, step))
